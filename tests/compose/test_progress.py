"""Progress is a few readable lines, not one per step."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from ptmq_lightning.compose.progress import Left, Progress, clock_time


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def module(index: int) -> Any:
    latest = {"loss/w3a3": 0.02134, "loss/w8a8": 1e-5, "loss/rounding": 12.0, "beta": 20.0, "settled": 0.4}
    return SimpleNamespace(place=SimpleNamespace(index=index, count=4, name="layer1.0", offset=0), latest=latest)


def trainer(step: int) -> Any:
    return SimpleNamespace(global_step=step, is_global_zero=True)


def test_a_line_says_block_step_losses_and_time_left() -> None:
    clock = Clock()
    progress = Progress(100, clock=clock)
    clock.now = 30.0
    assert progress.line(module(1), 50) == (
        "block 2/4 layer1.0  iter 50/100  w3a3 0.0213  w8a8 1e-05  settled 40 %  left 0:50"
    )


def test_time_left_counts_only_what_this_run_did() -> None:
    clock = Clock()
    progress = Progress(100, first_block=2, clock=clock)
    clock.now = 30.0
    assert progress.line(module(2), 50).endswith("left 1:30")


def test_lines_are_at_least_ten_seconds_apart(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = Progress(100, every=10, clock=clock)
    with caplog.at_level(logging.INFO):
        for step in range(1, 100):
            clock.now = step / 4
            progress.on_train_batch_end(trainer(step), module(0))
    explained, *lines = caplog.messages
    assert "settled: the share of roundings that are decided" in explained
    assert ["iter 40/100" in lines[0], "iter 80/100" in lines[1]] == [True, True]
    assert len(lines) == 2


def test_every_finished_block_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    progress = Progress(100, clock=Clock())
    with caplog.at_level(logging.INFO):
        progress.on_train_batch_end(trainer(100), module(3))
        progress.on_train_end(trainer(100), module(3))
    assert [message.startswith("block 4/4 layer1.0  iter 100/100") for message in caplog.messages] == [True]


def test_a_long_phase_tells_its_time_left_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    left = Left("insert", "layer", clock=clock)
    with caplog.at_level(logging.INFO):
        for second in range(1, 26):
            clock.now = second
            left(second, 40)
    assert caplog.messages == ["insert: layer 10 of 40, left 0:30", "insert: layer 20 of 40, left 0:20"]


def test_the_time_left_of_other_things_is_not_taken_from_the_first_ones(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    left = Left("calibrate", clock=clock)
    with caplog.at_level(logging.INFO):
        for now, done, unit in [
            (0, 0, "image"),
            (10, 1, "image"),
            (20, 2, "image"),
            (20, 0, "tensor"),
            (31, 1, "tensor"),
        ]:
            clock.now = now
            left(done, 2, unit)
    assert caplog.messages[-1] == "calibrate: tensor 1 of 2, left 0:11"


@pytest.mark.parametrize(("seconds", "text"), [(7.4, "0:07"), (750, "12:30"), (3723, "1:02:03")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text
