"""What is set where nobody sets it, and how far each key of a fit may be set."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from ptmq_lightning.reconstruction.losses import LossKeys
from ptmq_lightning.reconstruction.mixer import MixerKeys
from ptmq_lightning.reconstruction.recipe import MethodKeys, Schedule
from ptmq_lightning.runtime.keys import range_of

RATES = ("lr_rounding", "lr_activation", "lr_weight_step_size", "lambda_rounding")


def ranges(keys: type[Any]) -> dict[str, tuple[float, float]]:
    """Of the keys that have one."""
    found = {field.name: range_of(field) for field in fields(keys)}
    return {name: ends for name, ends in found.items() if ends != (-math.inf, math.inf)}


def test_counts_start_at_one_rates_at_zero_and_shares_end_at_one() -> None:
    counts = dict.fromkeys(("iters", "activation_iters", "batch", "log_every", "patience"), (1, math.inf))
    assert ranges(Schedule) == counts | dict.fromkeys(RATES, (0, math.inf)) | {"warmup": (0, 1)}
    assert (ranges(MethodKeys), ranges(MixerKeys), ranges(LossKeys)) == (
        {"drop": (0, 1)},
        {"p": (0, 1)},
        {"chain_k": (0, 1)},
    )


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            Schedule(),
            Schedule(500, None, 32, None, 1e-3, 1e-3, 0.01, warmup=0.2, beta_start=20, beta_end=2, log_every=50),
        ),
        (MethodKeys(), MethodKeys("block", "all", "joint", drop=0.5, bias_correction="none")),
        (MixerKeys(), MixerKeys("case3", p=0.5, weights=[])),
        (LossKeys(), LossKeys("gd_figure", "none", "auto", "fisher", [1, 1, 1], 0.5, False, False)),
    ],
    ids=["schedule", "method", "mixer", "loss"],
)
def test_what_nobody_sets_is_as_documented(found: object, expected: object) -> None:
    assert found == expected
