"""What a bit assignment costs: multiply-accumulates, bit operations, bytes (PTMQ §5).

Bit operations are MACs * weight bits * activation bits, a matmul of two activations MACs * a * a; pinned layers
(stem, head) count at their pinned widths. All counts are for one image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.hooks import watched_calls
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel, at_bits, quantizers_of
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

FLOAT_BYTES = 4


def layer_modules(model: MultiBitModel) -> dict[str, nn.Module]:
    """The module of every layer, by layer name."""
    found = {name: module for block in model.blocks for name, module in block.named_modules() if name in model.layers}
    missing = [name for name in model.layers if name not in found]
    if missing:
        raise ModelError(
            f"layers {', '.join(missing)} are not modules of the model's blocks; expected one module per layer name: "
            "build the model with quantize or load"
        )
    return found


@torch.inference_mode()
def layer_macs(model: MultiBitModel, example: Tensor) -> dict[str, int]:
    """Multiply-accumulates per layer for one image, counted while ``example`` (B, 3, H, W) runs."""
    macs = dict.fromkeys(model.layers, 0)

    def count(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        macs[name] += _macs(model.layers[name], inputs[0], output) // len(example)

    which = None if model.has_float else max(model.pairs)
    with watched_calls(layer_modules(model), count), at_bits(model, which):
        model(example)
    return macs


def _macs(layer: LayerInfo, given: Tensor, made: Tensor) -> int:
    """Of one batch. An output element sums as many products as a matmul's inner dimension is long, or as a weight has
    numbers per output channel; in a transposed convolution each input pixel meets every weight once."""
    if layer.kind == "conv_transpose":
        return given.numel() // given.shape[1] * layer.weights
    length = given.shape[-1] if layer.weight_shape is None else math.prod(layer.weight_shape[1:])
    return made.numel() * length


def layer_bit_ops(layer: LayerInfo, macs: int, pair: BitWidth) -> int:
    """MACs * w * a; of a matmul MACs * a * a, or pin_w * a where its first input (the softmax) is pinned."""
    w, a = layer.width(pair)
    return macs * a * (w if layer.weight_shape else layer.pin_w or a)


def bit_ops(macs: Mapping[str, int], assignment: BitAssignment, layers: Mapping[str, LayerInfo]) -> int:
    """Bit operations of one image at ``assignment``, pinned layers at their pinned widths."""
    return sum(layer_bit_ops(layers[name], macs[name], pair) for name, pair in assignment.items())


def size_bytes(model: MultiBitModel, assignment: BitAssignment) -> int:
    """Bytes of a model shipped at this one assignment.

    Weights at their width, packed per layer to whole bytes; one fp32 step per output channel; biases fp32; one step
    and one zero point (fp32) per activation quantizer, a byte per level where the levels stand in a table; every other
    tensor of the network (embeddings, norms) as it is. The file of all widths together is larger than the size at any
    one of them.
    """
    fixed, of_layer = byte_prices(model)
    return fixed + sum(of_layer(name, pair) for name, pair in assignment.items())


def byte_prices(model: MultiBitModel) -> tuple[int, Callable[[str, BitWidth], int]]:
    """The parts of `size_bytes`: what no width changes, and a layer's own at a pair."""
    modules = layer_modules(model)
    quantizers = [module for block in model.blocks for _, module in quantizers_of(block)]
    counted = {id(tensor) for module in (*modules.values(), *quantizers) for tensor in _tensors(module)}
    fixed = sum(tensor.nbytes for tensor in _tensors(model) if id(tensor) not in counted)
    fixed += 2 * FLOAT_BYTES * len(quantizers)
    tables: dict[str, list[int | None]] = {}
    for quantizer in quantizers:
        if quantizer.tables is not None:
            tables.setdefault(quantizer.owner, []).append(quantizer.pin)

    def of_layer(name: str, pair: BitWidth) -> int:
        layer = model.layers[name]
        w, a = layer.width(pair)
        levels = sum(2 ** (pin or a) for pin in tables.get(name, ()))
        if not layer.weight_shape:
            return levels
        biased = any(getattr(modules[name], held, None) is not None for held in ("bias", "biases"))
        floats = layer.weight_shape[0] * (2 if biased else 1)
        return levels + math.ceil(layer.weights * w / 8) + FLOAT_BYTES * floats

    return fixed, of_layer


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
