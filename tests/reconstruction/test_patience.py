"""A fit ends early where its held-out error and its rounding have settled, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch

from ptmq_lightning.reconstruction.patience import Patience
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.runtime.model import at_bits
from tests.networks import RECIPE, images, small_model, trainer


class Steps(L.Callback):
    """Counts the iterations of every unit."""

    def __init__(self) -> None:
        self.of_units: list[int] = []

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.of_units.append(trainer.global_step)


def steps_of(patience: int | None, iters: int, rate: float, count: int = 16) -> list[int]:
    """Iterations of every unit, under a regularizer that decides at once."""
    counted = Steps()

    def counting() -> L.Trainer:
        made = trainer()
        cast(Any, made).callbacks.append(counted)
        return made

    change = {"iters": iters, "patience": patience, "lr_rounding": rate, "lambda_rounding": 1.0, "log_every": 5}
    recipe = replace(RECIPE, schedule=replace(RECIPE.schedule, **change))  # type: ignore[arg-type]
    reconstruct_model(small_model(), images(count), recipe, counting)
    return counted.of_units


def test_a_unit_whose_rounding_is_decided_early_ends_early() -> None:
    steps = steps_of(1, 100, 0.5)
    assert min(steps) < 100 and all(count % 5 == 0 for count in steps)


def test_a_unit_whose_rounding_is_open_goes_on_to_the_end() -> None:
    assert set(steps_of(1, 20, 1e-6)) == {20}


def test_without_it_every_image_is_learned_from_and_every_iteration_is_made() -> None:
    assert set(steps_of(None, 20, 0.3)) == {20}


def test_too_few_images_to_hold_any_out_end_no_fit() -> None:
    assert set(steps_of(1, 40, 0.3, count=7)) == {40}


def test_held_out_images_teach_nothing() -> None:
    """Other pictures in their place, and the same model comes out."""
    shown, other = images(16), images(16)
    other[-2:] = images(2, seed=5)
    found = []
    for seen in shown, other:
        model = small_model()
        schedule = replace(RECIPE.schedule, iters=10, patience=10**6)
        reconstruct_model(model, seen, replace(RECIPE, schedule=schedule), trainer)
        with at_bits(model, 3), torch.no_grad():
            found.append(model(shown))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("errors", "settled", "ends"),
    [([1.0, 0.5, 0.5, 0.5], 1.0, 4), ([1.0, 0.999, 0.998, 0.997], 1.0, 3), ([1.0] * 4, 0.98, None)],
    ids=["two lines without a fall", "a thousandth is no fall", "open roundings"],
)
def test_it_ends_after_so_many_lines_without_a_fall(errors: list[float], settled: float, ends: int | None) -> None:
    patience, found = Patience(2, every=10), None
    for line, error in enumerate(errors, 1):
        module = SimpleNamespace(held_out_error=lambda error=error: error, latest={"settled": settled})
        of = SimpleNamespace(global_step=10 * line, should_stop=False)
        patience.on_train_batch_end(cast(Any, of), module)
        found = found or (line if of.should_stop else None)
    assert found == ends
