"""What the keys of a fit may be set to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from ptmq_lightning.reconstruction.losses import LossKeys
from ptmq_lightning.reconstruction.mixer import MixerKeys
from ptmq_lightning.reconstruction.recipe import MethodKeys, Schedule
from ptmq_lightning.runtime.keys import range_of

COUNTS = ("iters", "activation_iters", "batch", "log_every")
RATES = ("lr_rounding", "lr_activation", "lr_weight_step_size", "lambda_rounding")
SHARES = ("warmup", "drop", "p", "chain_k")


@pytest.mark.parametrize("keys", [Schedule, MethodKeys, MixerKeys, LossKeys])
def test_a_count_starts_at_one_a_rate_at_zero_and_a_share_ends_at_one(keys: Any) -> None:
    ranges = {field.name: range_of(field) for field in dataclasses.fields(keys)}
    for name, ends in {
        **dict.fromkeys(COUNTS, (1, math.inf)),
        **dict.fromkeys(RATES, (0, math.inf)),
        **dict.fromkeys(SHARES, (0, 1)),
    }.items():
        assert ranges.pop(name, ends) == ends, name
    assert set(ranges.values()) == {(-math.inf, math.inf)}, ranges  # every key with a range is one of these
