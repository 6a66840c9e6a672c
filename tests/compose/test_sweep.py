"""A sweep ends in one table whatever happens to its runs, and goes on in its own root when it is started again."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from ptmq_lightning.compose import cli, pipeline
from ptmq_lightning.compose.sweep import cell_name, sweep_name
from ptmq_lightning.config.schema import Config
from ptmq_lightning.report.record import STAGES, write_results
from ptmq_lightning.report.sweeps import Sweep, begin, read_sweep
from ptmq_lightning.runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ["-m", "mixer=none,case1", "seed=0,1"]
TEXTS = (".md", ".csv", ".json", ".svg", ".log")


def made_up(config: Config, path: Path) -> float:
    """A run that takes no time: its top-1 follows from mixer and seed."""
    if config.resume and (path / "results.json").exists():
        return 0.0
    if config.mixer.name == "case1" and config.seed == 1 and "FAIL" in os.environ:
        raise ConfigError(os.environ["FAIL"])
    logging.getLogger("ptmq_lightning").info("a line of the run")
    top1 = {"none": 80.0, "case1": 90.0}[config.mixer.name] + 2 * config.seed
    row = {"config": "w4a4", "w_bits": 4.0, "a_bits": 4.0, "top1": top1, "top5": None, "agreement": 97.0,
           "sqnr_db": 15.0, "logit_error": 0.03, "size_bytes": 1000, "bit_ops": 2000}  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    write_results(path, {
        "model": config.model.name, "data": "digits", "method": "ptmq", "seed": config.seed, "versions": {},
        "calibration_images": 1, "evaluation_images": 1, "fp": {"top1": 95.0, "top5": None},
        "seconds": dict.fromkeys(STAGES, 1.0), "peak_memory_bytes": 1, "rows": [row],
    })  # fmt: skip
    return top1


def command(folder: Path, *words: str, run: Any = made_up, **environment: str) -> tuple[int, str, str]:
    """Run the command line in this process and folder, with made-up runs (None: true ones): exit code, stdout,
    stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("HYDRA_FULL_ERROR", "0")
        patch.setenv("PTMQ_VERBOSITY", "0")
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(pipeline, "run", run or pipeline.run)
        patch.setattr(sys, "argv", ["train.py", *words])
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


@dataclass
class Start:
    """What a start of the sweep said, and what its root held then."""

    code: int
    out: str
    err: str
    root: Path
    sweep: Sweep
    files: dict[str, str]

    @classmethod
    def of(cls, folder: Path, *words: str, **environment: str) -> Start:
        said = command(folder, *words, **environment)
        root = root_of(folder)
        sweep = read_sweep(root)
        assert sweep is not None
        files = {f.relative_to(root).as_posix(): f.read_text() for f in root.rglob("*.*") if f.suffix in TEXTS}
        return cls(*said, root, sweep, files)

    @property
    def states(self) -> list[str]:
        return [job.state for job in self.sweep.jobs]

    @property
    def lines(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.files["table.csv"])))


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Start, Start, Start]:
    """The same sweep three times: with a run that fails, as it should be with -q, and afresh with -v."""
    folder = tmp_path_factory.mktemp("sweeps")
    return (
        Start.of(folder, *SWEEP, FAIL="found too much, expected less; take less"),
        Start.of(folder, "-q", *SWEEP),
        Start.of(folder, "-v", *SWEEP, "resume=false"),
    )


def root_of(folder: Path) -> Path:
    (root,) = {file.parent for file in folder.rglob("sweep.json")}
    return root


def test_a_sweep_ends_in_a_table_of_what_was_swept_over_the_seeds(starts: tuple[Start, ...]) -> None:
    ended = starts[2]
    head, baseline, *_ = ended.out.strip().splitlines()
    assert ended.code == 0
    assert head.split() == ["mixer", "width", "top-1", "%", "drop", "logit", "error", "seconds", "runs"]
    assert baseline.split() == ["float", "95.00", "-", "-", "-"]
    assert "none   w4a4   81.00 ± 1.41  14.00 ± 1.41  0.0300 ± 0.0000" in ended.out
    assert "case1  w4a4   91.00 ± 1.41   4.00 ± 1.41  0.0300 ± 0.0000" in ended.out
    assert max(map(len, ended.out.splitlines()[:-1])) <= 100  # the last is a path, for copying


def test_the_table_lies_in_the_root_with_a_folder_for_each_run(starts: tuple[Start, ...]) -> None:
    ended = starts[2]
    assert {"table.md", "table.csv", "table.json", "figure.svg"} <= set(ended.files)
    assert (ended.root / "figure.png").exists()
    assert [(line["mixer"], line["config"], line["runs"]) for line in ended.lines] == [
        ("", "float", "1"), ("none", "w4a4", "2"), ("case1", "w4a4", "2"),
    ]  # fmt: skip
    assert [job.folder for job in ended.sweep.jobs] == [
        "mixer-none_seed-0", "mixer-none_seed-1", "mixer-case1_seed-0", "mixer-case1_seed-1",
    ]  # fmt: skip


def test_a_failed_run_is_in_the_table_and_in_a_log_and_the_others_go_on(starts: tuple[Start, ...]) -> None:
    ended, again, _ = starts
    assert ended.code == 1 and "#3 failed: found too much, expected less; take less" in ended.err
    assert "1 of 4 runs have no result" in ended.out and "#3 mixer=case1 seed=1 failed: found too much" in ended.out
    assert [(line["mixer"], line["runs"]) for line in ended.lines][1:] == [("none", "2"), ("case1", "1")]
    assert "found too much" in ended.files["table.md"] and ended.states == ["done"] * 3 + ["failed"]
    assert [job["state"] for job in json.loads(ended.files["table.json"])["jobs"]] == ended.states
    assert "Traceback" in ended.files["jobs/0003.log"] and "jobs/0003.log" not in again.files


def test_the_same_command_runs_only_what_is_not_there_and_keeps_numbers_and_folders(starts: tuple[Start, ...]) -> None:
    before, after, afresh = starts
    assert after.code == 0 and "3 of 4 runs were there already" in after.out
    assert after.states == ["there already"] * 3 + ["done"] and after.root == before.root
    assert [(j.number, j.folder) for j in before.sweep.jobs] == [(j.number, j.folder) for j in after.sweep.jobs]
    assert afresh.states == ["done"] * 4 and "there already" not in afresh.out


def test_quiet_leaves_the_answer_alone_and_verbose_shows_every_line(starts: tuple[Start, ...]) -> None:
    normal, quiet, verbose = starts
    told = [line for line in normal.err.splitlines() if "HYDRA" not in line]
    assert len(told) == 4 and max(map(len, told)) <= 100
    assert quiet.err == "" and "case1" in quiet.out
    assert verbose.err.count("a line of the run") == 4 and "a line of the run" not in normal.err


def test_another_sweep_in_the_same_root_is_refused(tmp_path: Path) -> None:
    begin(tmp_path / "here", ["mixer=none,case1"], ["mixer"])
    code, out, err = command(tmp_path, "-m", "mixer=none,case1", "seed=0", "hydra.sweep.dir=here")
    assert (code, out) == (2, "") and "here holds another sweep (mixer=none,case1)" in err


def test_outputs_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    for again in (False, True):  # the root is to be made, then it is there
        code, out, err = command(tmp_path, *SWEEP)
        assert code == 0, err
        assert ("were there already" in out) == again
    assert len(list((tmp_path / "disk").rglob("results.json"))) == 4


def test_a_sweep_that_runs_already_is_refused(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with FileLock(tmp_path / "here" / ".ptmq-sweep"):
        code, out, err = command(tmp_path, *SWEEP, "hydra.sweep.dir=here")
    assert (code, out) == (2, "") and "another process runs the sweep in here" in err


def test_a_root_is_named_by_the_command_without_the_launcher_and_a_run_by_what_is_swept(tmp_path: Path) -> None:
    choices = {"model": "resnet18", "experiment": None}
    name = sweep_name(choices, ["mixer=none,case1", "seed=0", "resume=false"], ["hydra/launcher=joblib"])
    assert name.startswith("resnet18/mixer-none-case1_seed-0-") and name == sweep_name(
        choices, ["mixer=none,case1", "seed=0"], []
    )
    assert name != sweep_name(choices, ["mixer=none,case1", "seed=0"], ["hydra.sweeper.params.loss='mse,aph'"])
    (tmp_path / "sweep.json").write_text(json.dumps({"schema": 1, "command": [], "swept": ["model", "seed"]}))
    assert cell_name(str(tmp_path), ["model=deit_s", "seed=1", "recon=fast"]) == "model-deit_s_seed-1"


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def figures(root: Path) -> list[Any]:
    rows = json.loads((root / "table.json").read_text())["rows"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")], ids=["basic", "joblib"]
)
def test_a_killed_sweep_ends_in_the_table_of_an_undisturbed_one(launcher: tuple[str, ...], tmp_path: Path) -> None:
    if launcher:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [*SWEEP, "recon=smoke", *launcher]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    out, err = (whole := started(tmp_path / "whole", *words)).communicate()
    assert whole.returncode == 0, err
    (tmp_path / "killed" / "outputs").symlink_to(tmp_path / "float")  # the float network of the first one
    (tmp_path / "float").mkdir()
    (tmp_path / "whole" / "outputs" / "digits").rename(tmp_path / "float" / "digits")
    for awaited in ("block_*.json", "block_*.json", "mixer-*/results.json"):  # killed at the next one
        before = set((tmp_path / "float").rglob(awaited))
        process = started(tmp_path / "killed", *words)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if set((tmp_path / "float").rglob(awaited)) - before:
                break
            time.sleep(0.02)
        assert process.poll() is None, f"the sweep ended before it was killed: {process.communicate()}"
        os.killpg(process.pid, signal.SIGKILL)  # its own session: jobs too
        process.communicate()
    out, err = (last := started(tmp_path / "killed", *words)).communicate()
    assert last.returncode == 0, err
    assert "runs were there already" in out
    assert figures(root_of(tmp_path / "float")) == figures(root_of(tmp_path / "whole"))


def test_optuna_is_answered_with_top1_and_a_killed_search_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=0"]
    words = ["-m", "mixer=choice(none,case1)", *search, "hydra.sweeper.n_trials=4"]
    first, again = (Start.of(tmp_path, *words, "hydra.sweeper.n_jobs=1") for _ in range(2))
    best = max(float(line["top1_mean"]) for line in first.lines if line["config"] == "w4a4")
    assert first.code == again.code == 0 and f"Best value: {best}" in first.err + first.out
    assert len(again.states) == 4 and set(again.states) == {"there already"}
