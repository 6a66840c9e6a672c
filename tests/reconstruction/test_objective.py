"""Losses and their gradients are the golden ones; the token norm forgets the size of a token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptmq_lightning.reconstruction.losses import LOSSES
from ptmq_lightning.reconstruction.objective import Objective, distance
from ptmq_lightning.runtime.errors import ConfigError
from tests.golden_values import golden
from tests.networks import objective


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    values = golden("loss")
    return {
        k: torch.tensor(values[k], dtype=torch.float64, requires_grad=True) for k in ("target", "low", "mid", "high")
    }


def loss(found: Objective, tensors: dict[str, Tensor]) -> Tensor:
    return found([tensors["low"], tensors["mid"], tensors["high"]], tensors["target"].detach(), 1)[0]


@pytest.mark.parametrize(
    ("form", "value", "gradient", "of"),
    [
        ("gd_figure", "gd_figure_gammas_1", "gd_figure_grad_high", "high"),
        ("gd_direct", "gd_direct", "gd_direct_grad_low", "low"),
        ("gd_chain", "gd_chain_k_0.5", "gd_chain_grad_high", "high"),
        ("gd_chain", "gd_chain_k_0.5", "gd_chain_grad_mid", "mid"),
    ],
)
def test_losses_and_gradients_are_the_golden_ones(
    form: str, value: str, gradient: str, of: str, tensors: dict[str, Tensor]
) -> None:
    values = golden("loss")
    found = loss(objective(form), tensors)
    assert float(found.detach()) == pytest.approx(values[value], rel=1e-9)
    found.backward()
    # golden gradients are printed with ten digits
    torch.testing.assert_close(tensors[of].grad, torch.tensor(values[gradient], dtype=torch.float64), atol=1e-9, rtol=0)


def test_mse_is_the_mean_of_direct(tensors: dict[str, Tensor]) -> None:
    assert float(loss(objective("mse"), tensors)) == pytest.approx(float(loss(objective("gd_direct"), tensors)) / 3)


def test_figure_with_equal_outputs_is_one_plain_error(tensors: dict[str, Tensor]) -> None:
    same = tensors["low"]
    figure, own = objective("gd_figure")([same, same, same], tensors["target"], 1)
    torch.testing.assert_close(figure, own[0])


@pytest.mark.parametrize("form", ["gd_figure", "gd_direct", "gd_chain", "mse"])
def test_one_width_alone_is_one_plain_error(form: str, tensors: dict[str, Tensor]) -> None:
    found, own = objective(form)([tensors["low"]], tensors["target"], 1)
    torch.testing.assert_close(found, own[0])


def test_distances_between_two_outputs_are_in_the_lowest_ones_unit(tensors: dict[str, Tensor]) -> None:
    outputs, target, units = [tensors["low"], tensors["high"]], tensors["target"], [2.0, 5.0]
    (low, high), between = objective("gd_chain")(outputs, target, 1)[1], distance(*outputs, channel=1)
    found, own = objective("gd_chain", chain_k=0.25)(outputs, target, 1, units=units)
    assert [float(x) for x in own] == pytest.approx([float(low) / 2, float(high) / 5])
    assert float(found) == pytest.approx(float(high / 5 + 0.75 * low / 2 + 0.25 * between / 2))


def test_stop_gradient_keeps_the_lower_widths_from_pulling_the_highest(tensors: dict[str, Tensor]) -> None:
    loss(objective("gd_figure", stop_gradient=True, gammas=[0.0, 1.0, 1.0]), tensors).backward()
    assert tensors["high"].grad is not None and not tensors["high"].grad.any()


def test_the_token_norm_lets_a_massive_token_count_like_any_other() -> None:
    target = torch.randn(2, 5, 16, dtype=torch.float64)
    output = target + 0.1 * torch.randn_like(target)
    scale = torch.ones(2, 5, 1, dtype=torch.float64)
    scale[:, 3] = 500
    token = objective("mse", "token")
    plain, massive = token([output], target, 2)[0], token([output * scale], target * scale, 2)[0]
    # layer_norm's eps of 1e-5 is all that tells the two apart
    assert float(massive) == pytest.approx(float(plain), rel=1e-3)
    none = objective("mse")
    assert none([output * scale], target * scale, 2)[0] > 1000 * none([output], target, 2)[0]


def test_logits_are_not_normalized() -> None:
    output, target = torch.randn(4, 10), torch.randn(4, 10)
    assert torch.equal(objective("mse", "token")([output], target, 1)[0], objective("mse")([output], target, 1)[0])


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        objective("gd_sum")
    assert all(name in str(error.value) for name in ("gd_sum", *LOSSES))


def test_gammas_must_not_be_empty() -> None:
    with pytest.raises(ConfigError) as error:
        objective("gd_figure", gammas=[])
    assert "loss.gammas=[1]" in str(error.value)


def test_errors_count_to_the_power_p() -> None:
    x, y = torch.tensor([[[1.0], [3.0]]]), torch.zeros(1, 2, 1)  # (B, C, T)
    loss, _ = objective("mse", p=2.4)([x], y, channel=1)
    assert loss.item() == pytest.approx(1 + 3**2.4)
    weighted, _ = objective("mse", p=2.4)([x], y, 1, torch.tensor([[[1.0], [0.0]]]))
    assert weighted.item() == pytest.approx(1)
