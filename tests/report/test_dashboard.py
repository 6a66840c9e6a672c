"""The dashboard that is sent to W&B draws what runs log there; nothing is sent here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ptmq_lightning.report.dashboard import main
from ptmq_lightning.report.end import End

pytest.importorskip("wandb_workspaces")


def values(thing: Any, keys: tuple[str, ...]) -> set[str]:
    """Every text below these keys of nested plain values."""
    if isinstance(thing, dict):
        below = set().union(*(values(value, keys) for value in thing.values()))
        own = [value for key, value in thing.items() if key in keys]
        return below | {text for value in own for text in (value if isinstance(value, list) else [value]) if text}
    return set().union(*(values(item, keys) for item in thing)) if isinstance(thing, list) else set()


@pytest.fixture
def specification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    file = tmp_path / "dashboard.json"
    words = ["--entity", "team", "--project", "p", "--group", "a-sweep", "--widths", "w3a3,w4a4", "--by", "mixer"]
    assert main([*words, "--spec", str(file)]) == 0
    assert "nothing was sent" in capsys.readouterr().out
    return json.loads(file.read_text())


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_every_panel_draws_what_runs_log(part: str, specification: Any, results: dict[str, Any]) -> None:
    drawn = {text for text in values(specification[part], ("metrics", "xAxis", "yAxis")) if isinstance(text, str)}
    summary = set(End(Path(), results).summary())
    logged = {"loss/w3a3", "loss/w4a4", "fit/settled", "fit/rounding", "fit/beta", "iter", "block_iter", "block"}
    logged |= {f"step_sizes/{name}" for name in ("a3", "a4", "w3", "w4")}
    names = {text.removeprefix("summary:") for text in drawn} - {"_step"}  # of panels that choose no axis
    assert {"drop/w4a4", "top1/float", "loss/w3a3", "step_sizes/a4", "seconds/whole"} <= names
    assert names <= summary | logged


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_runs_are_those_of_the_sweep_in_groups_by_the_key(part: str, specification: Any) -> None:
    text = json.dumps(specification[part])
    assert "a-sweep" in text and "mixer.value.name" in text and "losses_.*/w4a4" in text


def test_without_the_extra_one_line_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ptmq_lightning.runtime.extras.find_spec", lambda name: None)
    assert main(["--entity", "team"]) == 2
    assert "ptmq-lightning[dashboard]" in capsys.readouterr().err
