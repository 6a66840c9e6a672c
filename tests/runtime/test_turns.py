"""Several threads and one model: right numbers with handles, an error without them, never wrong numbers."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.model import MultiBitModel
from tests.artifact.tiny import tiny_model

X = torch.tensor([[1.0, -1.0, 0.5], [0.25, 3.0, -4.0]])
CALLS = 60


def expected() -> dict[int, Tensor]:
    model, found = tiny_model(), {}
    for bits in (4, 8):
        model.switch(bits)
        found[bits] = model(X)
    return found


def answers(of_thread: Callable[[], MultiBitModel]) -> tuple[int, int]:
    """How many of the answers of eight threads, which switch between two widths, are wrong, and how many are errors."""
    right, wrong, errors = expected(), [], []
    start = threading.Barrier(8)

    def work(first: int) -> None:
        model = of_thread()
        start.wait()
        for call in range(CALLS):
            bits = (4, 8)[(first + call) % 2]
            try:
                model.switch(bits)
                found = model(X)
            except ModelError as error:
                errors.append(str(error))
                continue
            if not torch.equal(found, right[bits]):
                wrong.append(bits)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert all("handle()" in text for text in errors)
    return len(wrong), len(errors)


def test_a_model_that_several_threads_switch_gives_errors_and_no_wrong_answer() -> None:
    model = tiny_model()
    wrong, _ = answers(lambda: model)  # how many errors there are is up to the scheduler
    assert wrong == 0


def test_handles_give_every_thread_right_answers() -> None:
    model = tiny_model()
    assert answers(model.handle) == (0, 0)


def in_a_thread(what: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(what).result()


def test_a_thread_whose_width_was_taken_is_told_so() -> None:
    model = tiny_model()
    model.switch(4)
    in_a_thread(lambda: model.switch(8))
    with pytest.raises(ModelError, match=r"another thread has switched .*handle\(\)"):
        model(X)
    model.switch(4)
    assert torch.equal(model(X), expected()[4])


def test_a_switch_while_another_thread_runs_is_refused_and_changes_nothing() -> None:
    model = tiny_model()
    model.switch(4)
    inside, go = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        go.wait(30)

    model.blocks[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(model, X)
        inside.wait(30)
        with pytest.raises(ModelError, match=r"another thread is running .*handle\(\)"):
            model.switch(8)
        go.set()
        assert torch.equal(found.result(), expected()[4])


def test_a_thread_that_never_switched_runs_at_the_selected_width() -> None:
    model = tiny_model()
    model.switch(4)
    in_a_thread(lambda: model.switch(8))
    found: list[Tensor] = []
    in_a_thread(lambda: found.append(model(X)))
    assert torch.equal(found[0], expected()[8])


def test_a_copy_begins_with_an_account_of_its_own() -> None:
    model = tiny_model()
    model.switch(4)
    in_a_thread(lambda: model.switch(8))
    assert torch.equal(copy.deepcopy(model)(X), expected()[8])
