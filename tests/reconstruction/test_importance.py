"""Weights of the squared error are the derivatives they claim to be, label-free, and leave no trace on the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.reconstruction.features import FeatureBatch, Features
from ptmq_lightning.reconstruction.fit import Fit
from ptmq_lightning.reconstruction.importance import (
    PERTURBATION,
    TEMPERATURE,
    TOKENS,
    WEIGHTS,
    divergence_gradient,
    fisher,
    log_probabilities,
    perturbation,
    scaled,
)
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.runtime.errors import ConfigError
from tests.networks import RECIPE, images, mixer, objective, small_model, trainer

N, C, CLASSES = 6, 4, 5


@pytest.fixture
def head() -> nn.Linear:
    """The rest of a network whose derivatives can be written down."""
    torch.manual_seed(0)
    return nn.Linear(C, CLASSES).requires_grad_(False)


@pytest.fixture
def target() -> Tensor:
    return 3 * torch.randn(N, C, generator=torch.Generator().manual_seed(1))


def probabilities(head: nn.Linear, z: Tensor) -> Tensor:
    return torch.softmax(head(z).double() / TEMPERATURE, dim=-1)


def test_fim_is_the_squared_gradient_of_a_linear_head(head: nn.Linear, target: Tensor) -> None:
    quantized = target + 0.5
    expected = (probabilities(head, quantized) - probabilities(head, target)) @ head.weight.double() / TEMPERATURE
    found = fisher(head, target, quantized, batch=4)
    # float32 logits of size 10: their difference carries about six digits
    torch.testing.assert_close(found.double(), expected.square(), rtol=1e-4, atol=1e-14)


def test_aph_is_the_mean_row_sum_of_a_linear_heads_hessian(head: nn.Linear, target: Tensor) -> None:
    p = probabilities(head, target)
    inner = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)  # (N, classes, classes)
    hessian = head.weight.double().T @ inner @ head.weight.double() / TEMPERATURE**2  # (N, C, C)
    expected = 2 * PERTURBATION * target.std() * hessian.sum(2).abs().mean(0, keepdim=True)
    found = perturbation(head, target, batch=4)
    assert found.shape == (1, C)
    # differences over 2e-3 standard deviations of float32 outputs: three digits
    torch.testing.assert_close(found.double(), expected, rtol=5e-3, atol=0)


class Gated(nn.Module):
    def forward(self, z: Tensor, gate: Tensor) -> Tensor:
        return z * gate


def test_what_the_rest_takes_besides_is_each_images_own(head: nn.Linear, target: Tensor) -> None:
    gate, rest = torch.arange(1.0, N + 1).reshape(N, 1), nn.Sequential(Gated(), head)
    found = fisher(rest, target, target + 0.5, 4, gate)
    expected = fisher(head, target * gate, (target + 0.5) * gate, 4) * gate.square()
    torch.testing.assert_close(found, expected)
    ones = torch.ones(N, 1)
    torch.testing.assert_close(perturbation(rest, target, 4, ones), perturbation(head, target, 4))


def test_the_divergence_has_no_gradient_at_the_float_output(head: nn.Linear, target: Tensor) -> None:
    found = divergence_gradient(head, log_probabilities(head, target), target)
    assert float(found.abs().max()) < 1e-15  # what float64 leaves of a difference of equals


def test_a_scaled_weight_makes_an_error_as_large_as_the_target_the_number_of_channels(target: Tensor) -> None:
    weight = scaled(torch.rand(N, C), target)
    loss, _ = objective("gd_direct", weight="fim")([torch.zeros_like(target)], target, 1, weight)
    assert float(loss) == pytest.approx(C, rel=1e-5)


def test_only_tokens_that_are_read_set_the_scale() -> None:
    target, read = torch.randn(N, 7, C), torch.tensor([0])
    weight = torch.rand(N, 7, C)
    expected = scaled(weight[:, :1], target[:, :1])
    torch.testing.assert_close(scaled(weight, target, read)[:, :1], expected)


@pytest.mark.parametrize("form", ["gd_figure", "gd_direct", "gd_chain", "mse"])
def test_a_weight_of_one_changes_no_form(form: str, target: Tensor) -> None:
    outputs = [target + torch.randn_like(target) for _ in range(3)]
    plain, _ = objective(form)(outputs, target, 1)
    weighted, _ = objective(form, weight="aph")(outputs, target, 1, torch.ones(1, C))
    torch.testing.assert_close(weighted, plain)


@pytest.mark.parametrize("form", ["gd_figure", "gd_direct", "gd_chain", "mse"])
def test_an_element_of_no_weight_counts_in_no_form(form: str, target: Tensor) -> None:
    outputs = [target + torch.randn_like(target) for _ in range(3)]
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    loss, own = objective(form, weight="aph")(outputs, target, 1, weight)
    spoilt = [torch.cat([o[:, :1] + 100, o[:, 1:]], dim=1) for o in outputs]
    again, own_again = objective(form, weight="aph")(spoilt, target, 1, weight)
    assert float(again) == float(loss) and [*map(float, own_again)] == [*map(float, own)]


def test_weights_of_images_follow_their_rows_and_a_mean_serves_all(target: Tensor) -> None:
    rows, features = torch.tensor([4, 1]), Features(target, {})
    own = FeatureBatch(features, target, rows, weight=torch.arange(N).reshape(N, 1).float())
    mean = FeatureBatch(features, target, rows, weight=torch.ones(1, C))
    assert own.weight is not None and own.weight.flatten().tolist() == [4, 1]
    assert mean.weight is not None and mean.weight.shape == (1, C)
    assert FeatureBatch(features, target, rows).weight is None


@pytest.mark.parametrize("unit", ["block", "layer"])
@pytest.mark.parametrize("kind", ["fim", "aph"])
def test_the_gradient_pass_leaves_the_model_as_it_was(kind: str, unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = small_model(), images(8)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    seen = []

    def learn(self: Fit, weight: Tensor, _new_trainer: object) -> dict[str, float]:
        assert weight.shape == (self.target.shape if kind == "fim" else self.target[:1].shape)
        assert bool(weight.isfinite().all()) and float(weight.min()) >= 0 and float(weight.max()) > 0
        selected = [module.bits for module in model.modules() if hasattr(module, "select")]
        seen.append(selected == [None] * len(selected))
        return {}

    monkeypatch.setattr(Fit, "learn", learn)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    gradients = [None if p.grad is None else p.grad.clone() for m in norms for p in m.parameters()]
    recipe = replace(RECIPE, objective=objective(weight=kind), unit=unit)
    reconstruct_model(model, x, recipe, trainer)
    assert seen == [True] * recipe.count(model.layers.values())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert gradients == [p.grad for m in norms for p in m.parameters()]


@pytest.mark.parametrize("kind", ["fim", "aph"])
@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("gd_figure", {}),
        ("gd_direct", {}),
        ("mse", {"mixer": mixer("float")}),
        ("mse", {"quantize_inputs": False, "learn_inputs": False}),
        ("mse", {"unit": "layer"}),
    ],
)
def test_every_weight_fits_every_block(kind: str, form: str, changes: dict[str, Any]) -> None:
    schedule = replace(RECIPE.schedule, iters=2)
    recipe = replace(RECIPE, objective=objective(form, weight=kind), schedule=schedule, **changes)
    results = reconstruct_model(small_model(), images(8), recipe, trainer)
    assert [r.name for r in results] == ["stem", "layer1.0", "layer1.1", "blocks.0", "head"]


def test_an_unknown_weight_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        objective(weight="hessian")
    assert all(name in str(error.value) for name in ("hessian", *WEIGHTS))


def test_a_weight_with_a_norm_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        objective(norm="token", weight="fim")
    assert all(part in str(error.value) for part in ("loss.weight=fim", "loss.norm=token", "loss.norm=none"))


def test_unknown_tokens_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        objective(tokens="class")
    assert all(name in str(error.value) for name in ("class", *TOKENS))
