"""What a terminal shows: lines that fit, bars where a person watches, and in the end where everything is."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from ptmq_lightning.compose import bars, console
from ptmq_lightning.compose.ending import ending
from ptmq_lightning.compose.progress import Left


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A logger whose lines go to stderr as those of a command do."""
    monkeypatch.setenv("PTMQ_VERBOSITY", "0")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers, root.level = [logging.StreamHandler(sys.stderr)], logging.INFO
    yield logging.getLogger("ptmq_lightning.test")
    root.handlers, root.level = handlers, level


def run(monkeypatch: pytest.MonkeyPatch, log: logging.Logger, stream: io.StringIO) -> str:
    """A phase that tells how far it is at every step, between two lines."""
    monkeypatch.setattr(sys, "stderr", stream)
    logging.getLogger().handlers[0].setStream(stream)  # type: ignore[attr-defined]
    with console.of_run():
        log.info("before")
        left = Left("insert", "layer", every=0)
        for done in range(3):
            left(done, 3)
        log.info("after")
    return stream.getvalue()


def test_a_pipe_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, log: logging.Logger) -> None:
    text = run(monkeypatch, log, io.StringIO())
    assert [line.split(",")[0] for line in text.splitlines()] == [
        "before", "insert: layer 0 of 3", "insert: layer 1 of 3", "insert: layer 2 of 3", "after",
    ]  # fmt: skip


def test_a_terminal_gets_a_bar_in_place_of_these_lines_and_none_is_left(
    monkeypatch: pytest.MonkeyPatch, log: logging.Logger
) -> None:
    text = run(monkeypatch, log, Terminal())
    assert "layer 2 of 3" in text and "insert: layer" not in text  # drawn by the bar
    assert "before" in text and "after" in text
    assert bars._shown is None and logging.getLogger().handlers[0].filters == []


def test_lines_have_at_most_100_columns_and_paths_stay_whole(
    monkeypatch: pytest.MonkeyPatch, log: logging.Logger
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logging.getLogger().handlers[0].setStream(stream)  # type: ignore[attr-defined]
    with console.of_run():
        log.info("word " * 40)
        log.info("a path: /%s", "x" * 120)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines[:-1])) <= 100 and lines[-1].strip() == "/" + "x" * 120
    log.info("word " * 40)
    assert len(stream.getvalue().splitlines()[-1]) > 100, "a caller's log is as before"


def test_flags_are_taken_out_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMQ_VERBOSITY", "0")
    assert console.without_flags(["-m", "-q", "seed=0"]) == ["-m", "seed=0"] and console.verbosity() == console.QUIET
    assert console.without_flags(["--verbose"]) == [] and console.verbosity() == console.VERBOSE


def test_the_end_says_where_things_are_and_what_comes_next(tmp_path: Path) -> None:
    assert ending(tmp_path) == ""
    (tmp_path / "model").mkdir()
    for name in ("report.html", "results.json", "model/manifest.json"):
        (tmp_path / name).write_text("")
    told = ending(tmp_path)
    assert [str(tmp_path / name) in told for name in ("report.html", "results.json", "model")] == [True] * 3
    assert f"ptmq predict {tmp_path / 'model'} PICTURES" in told and "wandb" not in told
    (tmp_path / "wandb" / "offline-run-1").mkdir(parents=True)
    assert f"wandb sync {tmp_path / 'wandb' / 'offline-run-1'}" in ending(tmp_path)
