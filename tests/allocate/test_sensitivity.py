"""Sensitivity: the divergence one layer's width causes, never better for fewer bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptmq_lightning.allocate.divergence import Divergence, mean_kl
from ptmq_lightning.allocate.sensitivity import measure_layers, non_increasing
from ptmq_lightning.runtime.spec import BitWidth

IMAGES = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))


def test_the_figure_is_the_divergence_from_the_float_network(model: Any) -> None:
    error = 2.0**-3 * 3.0 + 2.0**-8 * 1.1  # layer c at 3 bits, a and b at 8
    logits = IMAGES.double()
    p, q = logits.softmax(1), (logits + error * torch.eye(5)[0]).softmax(1)
    expected = float((p * (p / q).log()).sum(1).mean())
    measured = measure_layers(Divergence, model, IMAGES, model.pairs)["c"][BitWidth(3, 3)]
    assert measured == pytest.approx(expected, rel=1e-4)  # float32 logits


def test_only_free_weight_layers_are_measured(model: Any) -> None:
    result = measure_layers(Divergence, model, IMAGES, model.pairs)
    assert list(result) == ["a", "b", "c"]
    assert all(list(harm) == list(model.pairs) for harm in result.values())


def test_the_batch_makes_no_difference(model: Any) -> None:
    whole = measure_layers(Divergence, model, IMAGES, model.pairs, batch=10)
    parts = measure_layers(Divergence, model, IMAGES, model.pairs, batch=3)
    for name in whole:
        assert parts[name] == pytest.approx(whole[name], rel=1e-9)  # float64 sums in another order


def test_the_selection_is_the_same_afterwards(model: Any) -> None:
    model.switch(3)
    before = model.active
    measure_layers(Divergence, model, IMAGES, model.pairs)
    assert model.active == before


def test_equal_answers_do_not_diverge() -> None:
    answers = [IMAGES.log_softmax(1)]
    assert mean_kl(answers, answers) == 0.0


def test_a_wider_pair_never_looks_worse() -> None:
    measured = {BitWidth(4, 4): 0.2, BitWidth(4, 8): 0.3, BitWidth(6, 6): 0.25, BitWidth(8, 8): 0.1}
    assert non_increasing(measured) == {
        BitWidth(4, 4): 0.3,
        BitWidth(4, 8): 0.3,
        BitWidth(6, 6): 0.25,
        BitWidth(8, 8): 0.1,
    }
