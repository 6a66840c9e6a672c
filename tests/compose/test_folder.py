"""A run loses nothing of an earlier one, whatever stops it and whoever else runs."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose import folder as run_folder
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.folder import RunFolder
from ptmq_lightning.compose.inputs import describe_inputs
from ptmq_lightning.config.schema import Config
from ptmq_lightning.reconstruction.reconstruct import BlockResult
from ptmq_lightning.report.record import SCHEMA
from ptmq_lightning.runtime.errors import ConfigError
from tests.artifact.tiny import tiny_model

BLOCK = BlockResult("all", 1.0, {})


@pytest.fixture(scope="module")
def config() -> Config:
    return configuration(["recon=smoke"])


@pytest.fixture(scope="module")
def resumed() -> Config:
    return configuration(["recon=smoke", "resume=true"])


def finish(place: Path, config: Config, text: str) -> None:
    """A complete run that left `text`."""
    with RunFolder(place, config) as folder:
        folder.open()
        write(folder, text)
        folder.close()


def write(folder: RunFolder, text: str) -> None:
    artifact.save(tiny_model(), folder.work / "model")
    for name in ("metrics.csv", "report.html"):
        (folder.work / name).write_text(text)
    (folder.work / "results.json").write_text(f'{{"schema": {SCHEMA}, "rows": ["{text}"]}}')


def contents(place: Path) -> dict[str, bytes]:
    files = (path for path in place.rglob("*") if path.is_file() and "unfinished" not in path.parts)
    return {str(path.relative_to(place)): path.read_bytes() for path in files}


def test_a_run_that_fails_leaves_the_earlier_one_as_it_was(config: Config, tmp_path: Path) -> None:
    finish(tmp_path, config, "first")
    before = contents(tmp_path)
    with pytest.raises(ZeroDivisionError), RunFolder(tmp_path, config) as folder:
        folder.open()
        write(folder, "second")
        raise ZeroDivisionError("it failed")
    assert contents(tmp_path) == before
    assert "ZeroDivisionError: it failed" in (tmp_path / "unfinished" / "train.log").read_text()


def test_a_complete_run_takes_the_place_of_the_earlier_one(config: Config, tmp_path: Path) -> None:
    finish(tmp_path, config, "first")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "notes.txt").write_text("not ours")
    finish(tmp_path, config, "second")
    assert (tmp_path / "metrics.csv").read_text() == "second"
    assert (tmp_path / "notes.txt").exists()
    assert not any((tmp_path / name).exists() for name in ("tensorboard", "unfinished", "complete"))


@pytest.mark.parametrize("step", range(14))
def test_a_kill_in_the_exchange_is_made_up_for(
    step: int, config: Config, resumed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, config, "first")
    count, remove, rename = 0, run_folder._remove, Path.rename

    def kill() -> None:
        nonlocal count
        count += 1
        if count == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder, "_remove", lambda target: (kill(), remove(target)))
        patch.setattr(Path, "rename", lambda path, target: (kill(), rename(path, target))[1])
        finish(tmp_path, config, "second")
        raise KeyboardInterrupt  # behind the last step
    killed_before_it_was_complete = (tmp_path / "unfinished").exists()
    with RunFolder(tmp_path, resumed) as folder:
        found = folder.finished()
    if killed_before_it_was_complete:
        assert found is None and (tmp_path / "metrics.csv").read_text() == "first"
    else:
        assert found is not None and found["rows"] == ["second"]
        assert (tmp_path / "metrics.csv").read_text() == "second" and not (tmp_path / "complete").exists()


def test_a_folder_with_a_config_of_somebody_else_loses_nothing(config: Config, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")
    with pytest.raises(ConfigError, match=r"no run's folder .* 'config.yaml'"), RunFolder(tmp_path, config):
        pass
    assert [item.name for item in tmp_path.iterdir()] == ["config.yaml"]


HOLD = """
import sys
from pathlib import Path
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.folder import RunFolder
with RunFolder(Path(sys.argv[1]), configuration(["recon=smoke"])) as folder:
    folder.open()
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(config: Config, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="another process runs in"), RunFolder(tmp_path, config):
            pass
        process.kill()
    with RunFolder(tmp_path, config) as folder:
        folder.open()


def test_a_complete_run_whose_model_is_gone_or_damaged_is_not_complete(
    config: Config, resumed: Config, tmp_path: Path
) -> None:
    finish(tmp_path, config, "first")
    with RunFolder(tmp_path, resumed) as folder:
        assert folder.finished() is not None
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with RunFolder(tmp_path, resumed) as folder:
        assert folder.finished() is None
    shutil.rmtree(tmp_path / "model")
    with RunFolder(tmp_path, resumed) as folder:
        assert folder.finished() is None


@pytest.mark.parametrize("changed", ["the network's weights", "the calibration images"])
def test_a_run_is_not_resumed_with_other_inputs(changed: str, config: Config, resumed: Config, tmp_path: Path) -> None:
    network, images = nn.Linear(2, 2), torch.zeros(1, 2)
    with RunFolder(tmp_path, config) as folder:
        folder.open()
        folder.require_same_inputs(describe_inputs(network, images))
        folder.keep(tiny_model(), 0, BLOCK)
    with torch.no_grad():
        (network.weight if changed == "the network's weights" else images).add_(1)
    with RunFolder(tmp_path, resumed) as folder, pytest.raises(ConfigError, match=changed):
        folder.open()
        folder.require_same_inputs(describe_inputs(network, images))


@pytest.mark.parametrize("name", ["block_001.json", "block_001.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", None], ids=["empty", "cut", "missing"])
def test_a_damaged_block_is_fitted_again_with_those_behind_it(
    name: str, content: bytes | None, config: Config, resumed: Config, tmp_path: Path
) -> None:
    with RunFolder(tmp_path, config) as folder:
        folder.open()
        for index in range(3):
            folder.keep(tiny_model(), index, BLOCK)
    file = tmp_path / "unfinished" / "resume" / name
    file.unlink() if content is None else file.write_bytes(content)
    with RunFolder(tmp_path, resumed) as folder:
        folder.open()
        assert folder.finished_blocks() == 1
        assert [result.name for result in folder.restore(tiny_model())] == [BLOCK.name]


def test_a_log_that_cannot_be_written_says_nothing(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder(tmp_path, config) as folder:
        folder.open()
        with monkeypatch.context() as patched:
            patched.setattr(run_folder._LogFile, "flush", full)
            logging.getLogger().warning("a line")
    assert "Traceback" not in capsys.readouterr().err


def test_a_run_of_an_earlier_version_is_resumed_where_a_new_key_changes_nothing(
    config: Config, resumed: Config, tmp_path: Path
) -> None:
    with RunFolder(tmp_path, config) as folder:
        folder.open()
    kept = tmp_path / "unfinished" / "config.yaml"
    stored = yaml.safe_load(kept.read_text())
    assert stored["trainer"].pop("cache") == "auto" and stored["step_size"].pop("zero_points") == [2, 3, 4]
    kept.write_text(yaml.safe_dump(stored))
    with (
        RunFolder(tmp_path, resumed) as folder,
        pytest.raises(ConfigError, match=r"configuration: step_size.zero_points was \[\], now \[2, 3, 4\]; give"),
    ):
        folder.open()
    stored["step_size"]["zero_points"] = [2, 3, 4]
    kept.write_text(yaml.safe_dump(stored))
    with RunFolder(tmp_path, resumed) as folder:
        folder.open()


@pytest.mark.parametrize("content", [b"\x00: [", b"", b"model", b"model: 3"])
def test_a_damaged_configuration_on_resume_is_one_message(
    content: bytes, config: Config, resumed: Config, tmp_path: Path
) -> None:
    with RunFolder(tmp_path, config) as folder:
        folder.open()
    (tmp_path / "unfinished" / "config.yaml").write_bytes(content)
    with RunFolder(tmp_path, resumed) as folder, pytest.raises(ConfigError, match="cannot be read"):
        folder.open()


def test_files_of_killed_writes_are_removed_by_the_next_run(config: Config, resumed: Config, tmp_path: Path) -> None:
    with RunFolder(tmp_path, config) as folder:
        folder.open()
    left = tmp_path / "unfinished" / ".metrics.csv.0123abcd.part"
    left.write_text("half")
    with RunFolder(tmp_path, resumed) as folder:
        folder.open()
    assert not left.exists()
