"""What W&B keeps of a sweep, one of whose runs was killed and resumed: read back from its offline files."""

from __future__ import annotations

import glob
import re
from pathlib import Path

import pytest

from benchmarks.wandb_offline import read_offline
from ptmq_lightning.compose.folder import RunFolder
from tests.compose.test_pipeline import TINY, Killed
from tests.compose.test_sweep import command

SWEEP = ["-m", "mixer=none,case1", "seed=0", "logger=wandb", "logger.mode=offline", *TINY]


@pytest.mark.slow
def test_a_killed_sweep_is_one_run_of_wandb_for_each_of_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, kept = RunFolder.keep, []

    def killed(self: RunFolder, *arguments: object) -> None:
        keep(self, *arguments)  # type: ignore[arg-type]
        kept.append(self.path.name)
        if len(kept) == 2:
            raise Killed

    monkeypatch.setenv("WANDB_SILENT", "true")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "keep", killed)
        command(tmp_path, *SWEEP, run=None)
    code, out, err = command(tmp_path, *SWEEP, run=None)
    assert code == 0, err
    (told,) = re.findall(r"wandb sync (.*)", out + err)
    assert len(glob.glob(told, root_dir=tmp_path)) == 3
    first, again, other = read_offline(tmp_path)
    assert first.id == again.id != other.id
    assert [run.name for run in (first, again, other)] == ["mixer-none"] * 2 + ["mixer-case1"]
    assert {run.group for run in (first, again, other)} == {next(tmp_path.rglob("sweep.json")).parent.name[-128:]}
    assert next(row["iter"] for row in again.history if "fit/settled" in row) == 6  # behind two blocks of 3 iterations
    for run in (again, other):
        assert {"top1/w2a4", "drop/w8a8", "top1/float", "seconds/whole", "memory/peak_bytes"} <= set(run.summary)
        assert run.artifacts["model"] >= {"model.safetensors", "manifest.json", "README.md"}
        assert [row[0] for row in run.tables["widths"]["data"]] == ["float", "w2a4", "w3a3", "w4a4", "w8a8"]
