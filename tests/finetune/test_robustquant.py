"""Kurtosis and its pull by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ptmq_lightning.finetune.fit import FinetuneKeys
from ptmq_lightning.finetune.robustquant import RobustQuant, kurtosis
from tests.finetune.networks import images, labels, network


def test_the_kurtosis_of_known_distributions() -> None:
    uniform = torch.linspace(-1, 1, 100_001)
    assert float(kurtosis(uniform)) == pytest.approx(1.8, abs=1e-3)  # float32 sums of 1e5 terms
    normal = torch.erfinv(torch.linspace(-1, 1, 100_001, dtype=torch.float64)[1:-1])
    assert float(kurtosis(normal)) == pytest.approx(3.0, abs=0.01)  # the outermost 1e-5 is cut off
    assert float(kurtosis(torch.tensor([-1.0, 1.0]))) == pytest.approx(0.25, abs=1e-6)  # std of n - 1: (1 / sqrt 2)^4


def test_the_pull_is_the_mean_over_the_inner_layers() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    module(torch.zeros(1, 3, 8, 8))
    fit = RobustQuant(module, FinetuneKeys(epochs=1), 1)
    expected = sum((float(kurtosis(module[i].weight.detach())) - 1.8) ** 2 for i in (1, 2)) / 2
    assert float(fit.regularizer().detach()) == pytest.approx(expected, rel=1e-5)


def test_a_step_is_cross_entropy_and_the_weighted_pull() -> None:
    fit = RobustQuant(network(), FinetuneKeys(epochs=1, kurtosis_weight=0.5), 1)
    found = dict(fit.losses(images(), labels()))
    assert list(found) == ["float", "kurtosis"]
    torch.testing.assert_close(found["float"], nn.functional.cross_entropy(fit.network(images()), labels()))
    torch.testing.assert_close(found["kurtosis"], 0.5 * fit.regularizer())


def test_following_the_pull_makes_the_weights_uniform() -> None:
    fit = RobustQuant(network(), FinetuneKeys(epochs=1), 1)
    with torch.no_grad():
        for weight in fit.pulled:
            weight.pow_(3)  # heavy tails
    before = float(fit.regularizer())
    optimizer = torch.optim.Adam(fit.pulled, lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        fit.regularizer().backward()
        optimizer.step()
    assert float(fit.regularizer()) < 0.05 * before
