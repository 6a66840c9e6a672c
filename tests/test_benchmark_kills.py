"""A killed run that is resumed ends with the bytes of one that nobody killed; the table follows from the results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import kills

FOUND = json.loads((kills.RESULTS / "kills.json").read_text(encoding="utf-8"))


def test_the_table_follows_from_the_results() -> None:
    assert (kills.RESULTS / "kills.md").read_text(encoding="utf-8") == kills.table(FOUND)


def test_no_byte_differs_after_twenty_kills() -> None:
    assert len(FOUND) >= 20 and {row["kind"] for row in FOUND} == {kind.name for kind in kills.KINDS}
    assert sum(row["bytes_differ"] + row["earlier_changed"] for row in FOUND) == 0


@pytest.mark.parametrize(("text", "count"), [(b"abc", 0), (b"abd", 1), (b"ab", 1), (b"xyzzy", 5)])
def test_differing_bytes_are_counted(text: bytes, count: int, tmp_path: Path) -> None:
    for name, content in (("one", b"abc"), ("other", text)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(content)
    assert kills.different(tmp_path / "one", tmp_path / "other") == count


def test_two_kills_now_leave_no_other_byte() -> None:
    script = (
        "import dataclasses, json; from benchmarks import kills; "
        "print(json.dumps(kills.measure([dataclasses.replace(kills.KINDS[i], kills=1) for i in (0, 2)])))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=kills.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["kind"] for row in rows] == [kills.KINDS[0].name, kills.KINDS[2].name]
    assert sum(row["bytes_differ"] + row["earlier_changed"] for row in rows) == 0
