"""Activations are overwritten only where nothing can see it, and the lean arithmetic is the trained one bit for bit."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.grid import LeanActivation, LookUp
from ptmq_lightning.runtime.inplace import allow_in_place
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, quantizers_of
from tests.networks import images, small_model

BASE = functools.cache(small_model)


def fresh() -> MultiBitModel:
    """The small model; making it anew for every test would cost seconds."""
    return copy.deepcopy(BASE())


def bits_of(x: Tensor) -> Tensor:
    """Floats as integers: 0 and -0 differ."""
    return x.contiguous().view(torch.int32)


ODD = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 0.05, -0.05, 1e30, -1e30, torch.inf, -torch.inf])


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zero", [0, 1, -1])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_lean_quantizer_gives_the_same_bits(bits: int, zero: int, in_place: bool) -> None:
    z = torch.tensor(float({0: 0, 1: 2 ** (bits - 1) - 1, -1: 2**bits - 1}[zero]))
    step = torch.tensor(0.1)
    x = torch.cat([torch.randn(4000, generator=torch.Generator().manual_seed(bits)) * 2, ODD])
    x = torch.cat([x, torch.arange(-300, 300) * 0.05])  # half steps: ties
    expected = grid.quantize_activation(x, step, z, bits)
    found = LeanActivation.of(step, z, bits)(x.clone() if in_place else x, in_place=in_place)
    assert torch.equal(bits_of(found), bits_of(expected))


def in_a_table(x: Tensor, step: Tensor, zero: Tensor, table: Tensor) -> Tensor:
    codes = (torch.round(x / step) + zero).clamp(0, 255).int()
    return (table[codes].float() - zero) * step


@pytest.mark.parametrize("tabled", [False, True])
def test_large_and_strided_tensors_are_quantized_as_small_ones(tabled: bool) -> None:
    step, z, table = torch.tensor(0.03), torch.tensor(7.0), torch.arange(256, dtype=torch.uint8) // 16 * 16
    lean = LookUp.of(step, z, table) if tabled else LeanActivation.of(step, z, 4)
    x = torch.randn(3, 5, 3 * grid.PIECE // 15 + 1)

    def by_hand(x: Tensor) -> Tensor:
        return in_a_table(x, step, z, table) if tabled else grid.quantize_activation(x, step, z, 4)

    for each in (x, x.transpose(0, 2), x[:, ::2]):
        expected = by_hand(each)
        assert torch.equal(bits_of(lean(each)), bits_of(expected)) and lean(each).stride() == expected.stride()
    small = x[:, :, :5].clone().requires_grad_(tabled)  # a table's own path where gradients are kept track of
    assert torch.equal(bits_of(lean(small).detach()), bits_of(by_hand(small.detach())))
    before, expected = x.data_ptr(), by_hand(x)
    found = lean(x, in_place=True)
    assert found.data_ptr() == before and torch.equal(bits_of(x), bits_of(expected))


def test_a_quantizer_keeps_its_gradient_where_one_is_asked_for() -> None:
    quantizer = ActivationQuantizer((4,), "x")
    quantizer.steps = torch.tensor([0.1])
    quantizer.select(4)
    x = torch.randn(5, requires_grad=True)
    assert torch.equal(quantizer(x), quantizer(x.detach())) and quantizer(x).requires_grad


def test_new_steps_are_noticed() -> None:
    quantizer, x = ActivationQuantizer((4,), "x"), torch.randn(50)
    quantizer.select(4)
    for change in (lambda: setattr(quantizer, "steps", torch.tensor([0.1])), lambda: quantizer.steps.mul_(3)):
        change()
        expected = grid.quantize_activation(x, quantizer.steps[0], quantizer.zero_points[0], 4)
        assert torch.equal(quantizer(x), expected)


@pytest.mark.parametrize("grad", [False, True])
def test_logits_in_place_are_bitwise_the_same(grad: bool) -> None:
    model, x = fresh(), images()
    lean = model.handle().run_in_place()
    assert sum(q.in_place for block in lean.blocks for _, q in quantizers_of(block)) >= 4
    assert not any(q.in_place for block in model.blocks for _, q in quantizers_of(block))
    before = x.clone()
    for which in (3, "w4a4", 8, None):
        with at_bits(model, which), at_bits(lean, which), torch.set_grad_enabled(grad):
            assert torch.equal(bits_of(lean(x)), bits_of(model(x))), which
    assert torch.equal(x, before)


class Case(nn.Module):
    """One operation, its quantizer, and what else happens to the tensor."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.quantizer = ActivationQuantizer((4,), "x")
        self.quantizer.steps = torch.tensor([0.1])
        self.loud, self.quiet = nn.ReLU(inplace=True), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "the input":
            return self.quantizer(x)
        if self.how == "a view":
            return self.quantizer((x + 1).reshape(-1))
        if self.how == "an operation in place":
            return self.quantizer(self.loud(x))
        if self.how == "an operation in place by argument":
            return self.quantizer(F.relu(x, inplace=True))
        y = self.quiet(x)
        q = self.quantizer(y)
        if self.how == "a second reader":
            return q + y
        if self.how == "a reader of a view":
            return q + y.reshape(-1).reshape(y.shape)
        if self.how == "an output beside":
            return torch.stack([q, y])
        if self.how == "a question for the size":
            return q.reshape(y.size(0), -1)
        return q


@pytest.mark.parametrize(
    ("how", "safe"),
    [
        ("nothing", True),
        ("a question for the size", True),
        ("the input", False),
        ("a view", False),
        ("an operation in place", False),
        ("an operation in place by argument", False),
        ("a second reader", False),
        ("a reader of a view", False),
        ("an output beside", False),
    ],
)
def test_only_a_new_tensor_with_one_reader_is_overwritten(how: str, safe: bool) -> None:
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, _: str) -> bool:
            return not isinstance(module, Case)

    case = Case(how)
    gm = fx.GraphModule(case, Tracer().trace(case))
    x = torch.randn(4, 6)
    gm.quantizer.select(4)
    expected = gm(x.clone())
    assert allow_in_place(gm, True) == safe
    assert torch.equal(gm(x.clone()), expected)
    assert allow_in_place(gm, False) == 0 and not gm.quantizer.in_place
