"""Trainable layers agree with autograd and with the integers they become."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptmq_lightning.quant import rounding as soft
from ptmq_lightning.quant.layers import MaskBank, TrainableActivation, _QuantDrop
from ptmq_lightning.quant.planes import PerWidth, Shared
from ptmq_lightning.quant.roundings import RoundingKeys
from ptmq_lightning.quant.steps import StepSize, weight_grids
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.golden_values import golden
from tests.networks import trainable

WIDTHS = (2, 3, 4, 8)
KINDS = [
    RoundingKeys("shared"),
    RoundingKeys("offset"),
    RoundingKeys("per_group", [[2, 3], [4, 8]]),
    RoundingKeys("per_width"),
]


def to_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def frozen() -> MultiBitWeight:
    """Of 2 and 3 bits some channels have zero points."""
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(3))
    n, step = grid.latent(weight)
    steps, zeros = weight_grids(weight, WIDTHS, StepSize(zero_points=[2, 3]))
    assert zeros.any(dim=1).tolist() == [True, True, False, False]
    return MultiBitWeight(n, step, WIDTHS, steps, zero_points=zeros)


def half_levels(bits: int) -> Tensor:
    zero = frozen().zero_point(bits)
    return torch.zeros(6, 1, 1, 1) if zero is None else grid.half_levels(zero, frozen().latent)


@pytest.mark.parametrize("case", golden("lsq_activation"), ids=lambda case: f"{case['bits']} bits")
def test_the_activation_gradients_are_the_golden_ones(case: dict) -> None:
    x = torch.tensor(case["x"], requires_grad=True)
    log_step = torch.tensor(case["s"]).log().requires_grad_()
    low = torch.tensor(-float(case["zero_point"]))
    y = _QuantDrop.apply(x, log_step.exp(), low, low + 2 ** case["bits"] - 1, None)
    y.backward(torch.tensor(case["upstream"]))
    torch.testing.assert_close(y.detach(), torch.tensor(case["y"]))
    torch.testing.assert_close(x.grad, torch.tensor(case["dx"]))
    # the parameter is the logarithm of the step: d/dlog s = s d/ds
    assert float(log_step.grad) / case["s"] == pytest.approx(case["ds_before_gradient_scale"], rel=1e-4)


def test_dropped_elements_pass_as_they_are_with_their_gradient() -> None:
    x = torch.randn(100, requires_grad=True)
    keep = (torch.rand(100) < 0.5).float()
    y = _QuantDrop.apply(x, torch.tensor(0.05, requires_grad=True), torch.tensor(-2.0), torch.tensor(5.0), keep)
    assert torch.equal(y[keep == 1], x[keep == 1])
    y.sum().backward()
    assert x.grad is not None and (x.grad[keep == 1] == 1).all()


@pytest.mark.parametrize("lay", [lambda x: x, to_last, lambda x: x[:, 1:], lambda x: x.transpose(1, 3)])
@pytest.mark.parametrize("levels", [None, torch.arange(256.0) // 2 - 7], ids=["uniform", "table"])
def test_a_quantizer_computes_the_same_in_every_layout_and_in_pieces(lay, levels, monkeypatch) -> None:
    x = torch.randn(4, 6, 5, 5)
    step, low, high = torch.tensor(0.21), torch.tensor(-7.0), torch.tensor(8.0)

    def run(x: Tensor, piece: int) -> list[Tensor]:
        monkeypatch.setattr(grid, "PIECE", piece)
        x, s = x.detach().requires_grad_(), step.clone().requires_grad_()
        y = _QuantDrop.apply(x, s, low, high, None, levels)
        y.backward(torch.sin(torch.arange(float(y.numel()))).view(y.shape))
        return [y.detach(), x.grad, s.grad]

    plain, found = run(lay(x).contiguous(), 1 << 17), run(lay(x), 13)
    assert torch.equal(plain[0], found[0]) and torch.equal(plain[1], found[1])
    torch.testing.assert_close(plain[2], found[2])


def test_what_a_quantizer_keeps_for_the_gradient_besides_its_input_and_output_is_one_tensor() -> None:
    x, masks = torch.randn(4, 50).requires_grad_() * 1, MaskBank(0)
    kept: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        y = _QuantDrop.apply(x, torch.tensor(0.2).requires_grad_(), *torch.tensor([-3.0, 4.0]), masks.flat(200))
    large = {t.data_ptr() for t in kept.values() if t.numel() > 1}
    assert {x.data_ptr(), y.data_ptr()} < large and len(large) == 3


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.name)
def test_the_soft_weight_has_autograds_gradients(how: RoundingKeys, bits: int) -> None:
    weight = trainable(frozen(), how, learn_step_sizes=True)
    weight.select(bits)
    upstream = torch.randn(weight.frozen.latent.shape)
    weight().backward(upstream)
    v = weight.v[weight.plane_of[bits]]
    gain = weight.log_gain[str(bits)]

    def composed(v: Tensor, gain: Tensor) -> Tensor:
        logits = v + weight.offsets[bits] if how.name == "offset" else v
        codes = weight.floors[bits] + half_levels(bits) + soft.rectified_sigmoid(logits)
        return (codes.clamp(*grid.limits(bits)) - half_levels(bits)) * (
            weight.frozen.steps[WIDTHS.index(bits)] * gain.exp()
        ).reshape(-1, 1, 1, 1)

    twins = v.detach().clone().requires_grad_(), gain.detach().clone().requires_grad_()
    composed(*twins).backward(upstream)
    torch.testing.assert_close(v.grad, twins[0].grad)
    torch.testing.assert_close(gain.grad, twins[1].grad)


def test_only_the_selected_width_gets_gradients() -> None:
    weight = PerWidth(frozen(), RoundingKeys("per_width"), learn_step_sizes=True)
    weight.select(4)
    weight().sum().backward()
    assert [v.grad is not None for v in weight.v] == [bits == 4 for bits in WIDTHS]
    assert [g.grad is not None for g in weight.log_gain.values()] == [bits == 4 for bits in WIDTHS]


def test_the_start_width_starts_at_the_float_weight_wherever_nothing_is_clipped() -> None:
    weight = Shared(frozen(), RoundingKeys("shared", init_width=4), learn_step_sizes=False)
    weight.select(4)
    u = grid.position(weight.frozen.latent, weight.frozen.ratios[WIDTHS.index(4)])
    inside = (u > grid.limits(4)[0]) & (u < grid.limits(4)[1])
    error = (weight() - weight.frozen.at(None)).abs()[inside]
    # the fraction is kept 1e-4 of a step away from 0 and 1
    assert float(error.max()) < 2e-4 * float(weight.frozen.steps[WIDTHS.index(4)].max())


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", ["offset", "per_width"])
def test_offset_and_per_width_start_at_nearest_rounding(kind: str, bits: int) -> None:
    weight, nearest = trainable(frozen(), RoundingKeys(kind), learn_step_sizes=False), frozen().code(bits)
    started = weight.floors[bits] + half_levels(bits) + (weight.logits(bits) >= 0).float()
    started = started.clamp(*grid.limits(bits))
    assert torch.equal(started, nearest.float())
    share = (weight.committed().code(bits) != nearest).float().mean()
    # tau = 1/2 is not a 31st: codes within 1/62 of a tie may differ
    assert float(share) < (0.03 if kind == "offset" else 1e-6)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.name)
def test_committed_integers_round_by_the_sign_of_v(how: RoundingKeys) -> None:
    weight = trainable(frozen(), how, learn_step_sizes=True)
    with torch.no_grad():
        for v in weight.v:
            v.copy_(torch.randn_like(v) * 3)
        for gain in weight.log_gain.values():
            gain.normal_(std=0.05)
    committed = weight.committed()
    for row, bits in enumerate(WIDTHS):
        hard = (weight.logits(bits) >= 0).float()
        expected = (weight.floors[bits] + half_levels(bits) + hard).clamp(*grid.limits(bits))
        found = committed.code(bits).float()
        if how.name == "offset":  # tau is rounded to 31sts
            assert float((found != expected).float().mean()) < 0.05
        else:
            assert torch.equal(found, expected)
        level = found - half_levels(bits)
        assert torch.equal(committed.at(bits), level * weight.step_size(bits).detach().reshape(-1, 1, 1, 1))
        assert torch.equal(committed.steps[row], weight.step_size(bits).detach())


def test_an_offset_is_stored_in_31sts() -> None:
    weight = trainable(frozen(), RoundingKeys("offset"), learn_step_sizes=False)
    for v, tau in ((-20.0, 0), (20.0, 31)):
        with torch.no_grad():
            weight.v[0].fill_(v)
        assert weight.decided().unique().tolist() == [tau]


def test_the_committed_weight_keeps_the_integers_it_was_made_of() -> None:
    source = frozen()
    committed = Shared(source, RoundingKeys("shared"), learn_step_sizes=True).committed()
    assert torch.equal(committed.latent, source.latent) and torch.equal(committed.ratios, source.ratios)


def test_a_committed_activation_quantizer_computes_what_was_trained() -> None:
    quantizer = ActivationQuantizer((3, 8), "layer")
    quantizer.steps, quantizer.zero_points = torch.tensor([0.3, 0.01]), torch.tensor([2.0, 60.0])
    trainable = TrainableActivation(quantizer, MaskBank(0)).eval()
    x = torch.randn(200)
    for bits in (3, 8):
        trainable.select(bits)
        assert torch.equal(trainable(x), trainable.committed()(x))


def test_masks_repeat_with_their_seed_and_have_their_share() -> None:
    first, second = MaskBank(5, 0.25), MaskBank(5, 0.25)
    shape = torch.Size((200, 500))
    assert torch.equal(first(shape), second(shape))
    # 1e5 draws: standard error 0.0014
    assert abs(float(first(shape).mean()) - 0.25) < 0.01


def test_masks_are_slices_of_the_bank_at_other_places_each_time() -> None:
    bank = MaskBank(0)
    masks = [bank(torch.Size([4, 64])) for _ in range(8)]
    assert all(not torch.equal(one, other) for i, one in enumerate(masks) for other in masks[:i])


def test_a_mask_larger_than_half_the_bank_leaves_room_for_others() -> None:
    bank = MaskBank(0, size=128)
    assert bank(torch.Size([64])).shape == (64,) and len(bank.bank) == 128  # half of it fits
    assert bank(torch.Size([65])).shape == (65,) and len(bank.bank) == 4 * 65
    assert not torch.equal(bank(torch.Size([100])), bank(torch.Size([100])))


def test_a_width_without_a_plane_starts_and_ends_with_the_codes_of_nearest_rounding() -> None:
    nearest = frozen()
    weight = trainable(frozen(), RoundingKeys("per_group", [[2], [3]]), learn_step_sizes=True)
    for bits in (4, 8):
        weight.select(bits)
        assert torch.equal(weight(), nearest.at(bits)), bits
    with torch.no_grad():
        for parameter in weight.parameters():
            parameter.add_(torch.randn(parameter.shape))
    committed = weight.committed()
    assert [torch.equal(committed.code(bits), nearest.code(bits)) for bits in WIDTHS] == [False, False, True, True]
    assert not torch.equal(committed.steps[-1], nearest.steps[-1])


def test_a_width_without_a_plane_is_not_regularized_and_never_undecided() -> None:
    weight = trainable(frozen(), RoundingKeys("per_group", [[2], [3]]), learn_step_sizes=True)
    assert weight.variables({4, 8}) == {} and weight.undecided({4, 8}) == []
    assert len(weight.undecided({2, 8})) == 1


def test_a_weight_without_any_plane_is_committed_as_nearest() -> None:
    weight = trainable(frozen(), RoundingKeys("per_group", [[5]]), learn_step_sizes=True)
    assert weight.learned() == [] and weight.committed().kind == "nearest"
