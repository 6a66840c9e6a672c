"""Costs: the published figures, counted on the layers themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.evaluation.cost import bit_ops, layer_bit_ops, layer_macs, size_bytes
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cost.json").read_text())


def info(kind: str, shape: tuple[int, ...] | None, pin_w: int | None = None, pin_a: int | None = None) -> LayerInfo:
    return LayerInfo("", 0, kind, shape, pin_w, pin_a)


def chain(modules: dict[str, nn.Module], layers: dict[str, LayerInfo]) -> MultiBitModel:
    """Modules in a row, one block, by layer name."""
    block = nn.Sequential()
    for name, module in modules.items():
        block.add_module(name, module)
    return MultiBitModel([block], ["all"], layers, [BitWidth(8, 8)])


class Scores(nn.Module):
    """Attention scores of (B, heads, tokens, head_dim): the layer is the matmul inside."""

    def __init__(self) -> None:
        super().__init__()
        self.product = Product()

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x.transpose(-2, -1))


class Product(nn.Module):
    """A matmul of two activations."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y


@pytest.mark.parametrize("batch", [1, 3])
def test_a_convolution_costs_what_is_published(batch: int) -> None:
    g = GOLDEN["conv"]
    conv = nn.Conv2d(g["in"], g["out"], g["kernel"], padding=1)
    model = chain({"conv": conv}, {"conv": info("conv", tuple(conv.weight.shape))})
    macs = layer_macs(model, torch.zeros(batch, g["in"], g["out_hw"], g["out_hw"]))
    assert macs == {"conv": g["macs"]}
    assignment = BitAssignment((("conv", BitWidth(g["w_bits"], g["a_bits"])),))
    assert bit_ops(macs, assignment, model.layers) == g["bit_ops"]


def test_a_depthwise_convolution_costs_what_is_published() -> None:
    g = GOLDEN["depthwise"]
    conv = nn.Conv2d(g["channels"], g["channels"], g["kernel"], padding=1, groups=g["channels"])
    model = chain({"conv": conv}, {"conv": info("conv", tuple(conv.weight.shape))})
    macs = layer_macs(model, torch.zeros(1, g["channels"], g["out_hw"], g["out_hw"]))
    assert macs == {"conv": g["macs"]}
    assert layer_bit_ops(model.layers["conv"], g["macs"], BitWidth(g["w_bits"], g["a_bits"])) == g["bit_ops"]


@pytest.mark.parametrize("batch", [1, 3])
def test_in_a_transposed_convolution_every_input_pixel_meets_every_weight(batch: int) -> None:
    conv = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
    model = chain({"up": conv}, {"up": info("conv_transpose", (4, 3, 3, 3))})
    assert layer_macs(model, torch.zeros(batch, 6, 5, 7)) == {"up": 5 * 7 * 4 * 3 * 3 * 3}


def test_attention_scores_cost_what_is_published() -> None:
    g = GOLDEN["attention_scores"]
    model = chain({"attention": Scores()}, {"attention.product": info("matmul", None)})
    macs = layer_macs(model, torch.zeros(2, g["heads"], g["tokens"], g["head_dim"]))
    assert macs == {"attention.product": g["macs"]}
    assert layer_bit_ops(model.layers["attention.product"], g["macs"], BitWidth(8, g["a_bits"])) == g["bit_ops"]


def test_a_linear_layer_counts_every_token() -> None:
    model = chain({"fc": nn.Linear(5, 7)}, {"fc": info("linear", (7, 5))})
    assert layer_macs(model, torch.zeros(2, 11, 5)) == {"fc": 11 * 5 * 7}


def test_a_pinned_layer_costs_its_pinned_widths() -> None:
    assert layer_bit_ops(info("conv", (8, 3, 3, 3), pin_w=8, pin_a=8), 10, BitWidth(3, 3)) == 640


def test_a_matmul_of_a_pinned_first_input_costs_both_widths() -> None:
    assert layer_bit_ops(info("matmul", None, pin_w=8), 10, BitWidth(3, 3)) == 240


def test_counting_leaves_no_hook_behind() -> None:
    model = chain({"fc": nn.Linear(5, 7)}, {"fc": info("linear", (7, 5))})
    with pytest.raises(RuntimeError):
        layer_macs(model, torch.zeros(2, 6))
    assert not model.blocks[0].fc._forward_hooks


def mixed(**more: nn.Module) -> tuple[MultiBitModel, BitAssignment]:
    """A pinned stem and two free layers at w3a4 and w5a6."""
    modules = {"stem": nn.Linear(4, 2), "a": nn.Linear(2, 3), "b": nn.Linear(3, 3, bias=False)}
    pins = {"stem": (8, 8), "a": (None, None), "b": (None, None)}
    layers = {name: info("linear", tuple(module.weight.shape), *pins[name]) for name, module in modules.items()}
    pairs = (("stem", BitWidth(8, 8)), ("a", BitWidth(3, 4)), ("b", BitWidth(5, 6)))
    return chain({**modules, **more}, layers), BitAssignment(pairs)


LAYER_BYTES = (8 + 2 * 4 + 2 * 4) + (3 + 3 * 4 + 3 * 4) + (6 + 3 * 4)  # 8*8, 6*3 and 9*5 bits in bytes; steps; biases


def test_the_size_is_packed_weights_steps_and_biases() -> None:
    assert size_bytes(*mixed()) == LAYER_BYTES


def test_the_size_counts_what_is_not_quantized() -> None:
    assert size_bytes(*mixed(norm=nn.LayerNorm(3))) == LAYER_BYTES + 2 * 3 * 4


def test_the_size_counts_a_step_and_a_zero_point_per_activation_quantizer() -> None:
    assert size_bytes(*mixed(act=ActivationQuantizer((3, 4, 8), "a"))) == LAYER_BYTES + 8


def test_the_size_counts_a_byte_per_level_of_a_table() -> None:
    assert size_bytes(*mixed(act=ActivationQuantizer((3, 4, 8), "a", table=True))) == LAYER_BYTES + 8 + 2**4


def test_a_layer_without_a_module_is_an_error() -> None:
    model, assignment = mixed()
    model.layers["gone"] = info("linear", (3, 3))
    with pytest.raises(ModelError) as error:
        size_bytes(model, assignment)
    assert str(error.value) == (
        "layers gone are not modules of the model's blocks; expected one module per layer name: "
        "build the model with quantize or load"
    )
