"""A sweep that was killed and resumed, and one under joblib, end in the table of one that nobody touched."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sweep_kills

FOUND: dict[str, Any] = json.loads((sweep_kills.RESULTS / "sweep_kills.json").read_text(encoding="utf-8"))


def test_the_page_follows_from_the_results() -> None:
    assert (sweep_kills.RESULTS / "sweep_kills.md").read_text(encoding="utf-8") == sweep_kills.page(FOUND)


def test_no_line_job_or_byte_differs_from_the_undisturbed_sweep() -> None:
    whole, killed, joblib = FOUND["rows"]
    assert (len(whole["kills"]), len(killed["kills"]), joblib["words"][0]) == (0, 3, "hydra/launcher=joblib")
    assert killed["skipped"] > 0 and len({kill["finished"] for kill in killed["kills"]}) > 1
    for row in FOUND["rows"]:
        assert row["runs"] == sweep_kills.RUNS and row["lines"] == len(FOUND["table"]) == 13
        assert (row["lines_differ"], row["jobs_differ"], row["bytes_differ"]) == (0, 0, 0)


def test_a_start_is_killed_at_its_moment_and_leaves_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text("print('began', flush=True)\nwhile True: pass\n")
    monkeypatch.setattr(sweep_kills, "ROOT", tmp_path)
    used, code, text = sweep_kills.start([], tmp_path, 0.2)
    assert used >= 0.2 and code == -signal.SIGKILL and text == "began\n"


def test_the_compared_lines_hold_every_figure_but_the_seconds(tmp_path: Path) -> None:
    row = {"settings": {"mixer": "none"}, "config": "w4a4", "top1": {"mean": 1.0}, "seconds": {"mean": 2.0}}
    (tmp_path / "table.json").write_text(json.dumps({"by": ["mixer"], "rows": [row]}))
    (line,) = sweep_kills.table_of(tmp_path)
    assert set(line) == {"settings", "config", "top1"}
