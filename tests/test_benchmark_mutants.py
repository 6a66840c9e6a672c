"""The script that breaks the code keeps what it found of the code of today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import mutants

SOURCE = '"""Doc."""\n\n\ndef room(count: int) -> int:\n    return count * 8 if count > 1 else 0\n'


def test_a_place_is_broken_in_every_way_and_each_names_its_line() -> None:
    found = [(mutant.what, mutant.text) for mutant in mutants.mutants(SOURCE, "room.py")]
    assert sorted(found) == [
        ("0 -> 1", "return count * 8 if count > 1 else 1"),
        ("1 -> 2", "return count * 8 if count > 2 else 0"),
        ("8 -> 9", "return count * 9 if count > 1 else 0"),
        ("Gt -> GtE", "return count * 8 if count >= 1 else 0"),
        ("Mult -> Div", "return count / 8 if count > 1 else 0"),
        ("condition negated", "return count * 8 if not count > 1 else 0"),
    ]


def test_what_was_found_of_code_that_is_gone_is_dropped_and_the_rest_is_where_it_is_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "RESULTS", tmp_path)
    every = list(mutants.mutants(SOURCE, "room.py"))
    here = every[0].row() | {"line": 3, "survived": True, "equivalent": "why"}
    gone = every[1].row() | {"file": "old.py", "survived": False}
    mutants.write("room", {"places": 2, "seed": 7, "tried": [gone, here]})
    found = mutants.so_far("room", every)
    assert found == {"places": 6, "seed": 7, "tried": [here | {"line": every[0].line}]}
    assert json.loads((tmp_path / "room.json").read_text())["places"] == 2  # not written before it is complete
