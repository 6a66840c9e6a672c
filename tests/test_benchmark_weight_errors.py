"""The page of nearest rounding's errors follows from its results, which hold every network."""

from __future__ import annotations

import json
from itertools import pairwise

from benchmarks import every_width, weight_errors
from benchmarks.accuracy_figure import TITLES


def test_the_page_of_weight_errors_follows_from_the_results() -> None:
    found = json.loads(weight_errors.FILE.read_text(encoding="utf-8"))
    assert set(found) == set(TITLES)
    assert weight_errors.FILE.with_suffix(".md").read_text(encoding="utf-8") == weight_errors.page(found)
    for rows in found.values():
        assert [row["bits"] for row in rows] == [2, 3, 4, 5, 6, 7, 8]
        assert all(a["median"] > b["median"] for a, b in pairwise(rows))
        assert [row["bits"] for row in rows if row["moved"]] == [2, 3, 4, 5, 6]
        assert all(row["moved"]["median"] < row["median"] for row in rows if row["moved"])


def test_the_pages_of_every_width_follow_from_their_results() -> None:
    for name, asked in every_width.PAGES.items():
        found = json.loads((every_width.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        assert list(found) == list(asked.rows)
        assert (every_width.RESULTS / f"{name}.md").read_text(encoding="utf-8") == every_width.page(name, found)
