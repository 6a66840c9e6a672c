"""The README is true: its tables are those of benchmarks/results, its example runs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from benchmarks import readme
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config.build import PAIRS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAIRED = {("bits", pair) for pair in PAIRS}  # options without a file


def test_its_tables_are_those_that_were_measured() -> None:
    assert len(readme.PLACE.findall(README)) >= 2
    assert readme.filled(README) == README


def test_a_part_that_was_never_measured_is_told() -> None:
    with pytest.raises(ValueError, match=r"asks for the part .Top-9. of benchmarks/results/digits\.md"):
        readme.filled("<!-- begin benchmarks/results/digits.md#Top-9 -->\n<!-- end -->")


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["logits"].shape == (64, 10)  # type: ignore[attr-defined]
    assert (tmp_path / "outputs" / "my_model" / "manifest.json").exists()


def test_every_group_and_option_named_in_the_commands_exists() -> None:
    commands = re.findall(r"^ {4}python train\.py (.*)$", README, flags=re.MULTILINE)
    assert commands
    for word in " ".join(commands).split():
        group, _, options = word.partition("=")
        if (ROOT / "conf" / group).is_dir():
            for option in options.split(","):
                assert (ROOT / "conf" / group / f"{option}.yaml").exists() or (group, option) in PAIRED, word


def test_the_two_readings_of_the_method_differ_in_the_rows_of_their_table() -> None:
    ours, paper = (dataclasses.asdict(configuration([f"method={name}"])) for name in ("ptmq", "ptmq_paper"))
    rows = {
        "mixer": "block input", "loss": "loss", "rounding": "rounding", "step_size": "weight steps",
        "placement": "levels behind a GELU", "bits": "groups",
    }  # fmt: skip
    assert {group for group in ours if ours[group] != paper[group]} == {*rows, "method"}
    (table,) = re.findall(r"^\| \| `method=ptmq_paper` \|.*?\n((?:\|.*\n)+)", README, flags=re.MULTILINE)
    assert [line.split("|")[1].strip() for line in table.splitlines()[1:]] == list(rows.values())
