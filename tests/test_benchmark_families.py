"""The committed table of families is the one that its results make, and holds what is promised of it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("families", ROOT / "benchmarks" / "families.py")
assert spec and spec.loader
families = importlib.util.module_from_spec(spec)
spec.loader.exec_module(families)
RESULTS = ROOT / "benchmarks" / "results"


def test_the_table_is_made_of_the_results() -> None:
    found = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))
    assert (RESULTS / "families.md").read_text(encoding="utf-8") == families.table(found)


def test_sixty_families_are_saved_bit_for_bit_and_fifty_five_exported() -> None:
    rows = json.loads((RESULTS / "families.json").read_text(encoding="utf-8")).values()
    assert len(rows) >= 60 and all(row.get("equal") for row in rows)
    assert sum(bool(row.get("exported")) for row in rows) >= 55


@pytest.mark.runtimes
def test_a_family_goes_through_every_column() -> None:
    row = families.measure("test_byobnet", families.FAMILIES["test_byobnet"])
    assert "reason" not in row and row["equal"] and row["exported"] and row["largest_step"] <= 1
