"""What goes wrong is one message with its exit code, and the page that lists it follows from the results."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import failures
from benchmarks.failure_cases import CASES

FOUND = json.loads(failures.RESULTS.read_text(encoding="utf-8"))
SAMPLE = (
    "a key with a slip of the pen",
    "a huge seed",
    "a width that the model has not",
    "a pickle with code",
    "a picture one pixel wide",
    "a cut manifest",
    "9 to the power of a billion",
    "an export whose hashes name a file outside",
    "resume with another key",
    "resume with cut tensors of a block",
    "a folder with a configuration of somebody else",
    "another process in the same folder",
    "Ctrl-C in the fit",
)


def test_the_page_follows_from_the_results() -> None:
    assert failures.PAGE.read_text(encoding="utf-8") == failures.page(FOUND)


def test_the_results_hold_every_case_of_the_table_and_none_is_wrong() -> None:
    assert [row["situation"] for row in FOUND] == [case.situation for case in CASES]
    assert len(FOUND) >= 100
    assert [row for row in FOUND if failures.wrong(row)] == []


@pytest.mark.parametrize(
    "fault",
    [
        {"code": 3},
        {"code": None},
        {"named": False},
        {"traceback": True},
        {"lost": True},
        {"seconds": 11},
        {"megabytes": 3000},
    ],
    ids=str,
)
def test_a_row_with_any_fault_is_wrong(fault: dict[str, object]) -> None:
    assert not failures.wrong(FOUND[0]) and failures.wrong(FOUND[0] | fault)


def provoked(names: set[str]) -> list[dict[str, object]]:
    """What is wrong with these cases, in a process of its own: a fork of this one would inherit its threads.

    However long they take, unless they hang: seconds are measured for the page, on a machine that does nothing else.
    """
    script = (
        "import json, sys; from benchmarks import failures; from benchmarks.failure_cases import CASES; "
        "names = set(json.loads(sys.argv[1])); cases = [case for case in CASES if case.situation in names]; "
        "rows = list(failures.run(cases)); "
        "print(json.dumps([len(rows), [row for row in rows if failures.wrong(row, failures.PATIENCE)]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(sorted(names))], cwd=failures.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, wrong = json.loads(done.stdout.splitlines()[-1])
    assert count == len(names)
    return wrong


def test_a_sample_of_the_failures_is_answered_as_the_page_says() -> None:
    assert provoked(set(SAMPLE)) == []


@pytest.mark.slow
def test_every_failure_is_answered_as_the_page_says() -> None:
    assert provoked({case.situation for case in CASES}) == []
