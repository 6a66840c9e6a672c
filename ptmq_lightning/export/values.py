"""The numbers of an exported graph at a width: integers, scales and bounds, from a table and a store of arrays.

A layer's weight is s8 per output channel, its bias int32 in units of s_a * s_w. An activation is 8 bits at every width:
a narrow one is clipped to its own codes. Plain numpy, so that a device needs no torch to switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of, weights_of
from ptmq_lightning.runtime.spec import HELD_BITS, BitAssignment
from ptmq_lightning.runtime.weights import CommittedWeight

Array = NDArray[Any]
BIAS_LIMIT = 2.0**30  # of an int32 that products are added to


@dataclass(frozen=True)
class LayerRow:
    """A layer with a weight. source: the quantizer of its input, None where that is float. transposed: (O, C) is
    stored as (C, O)."""

    name: str
    source: str | None
    transposed: bool
    bias: bool


@dataclass(frozen=True)
class QuantizerRow:
    """A place where a tensor becomes integers.

    owner: the layer whose width it follows; None: 8 bits at every width over `range`. signed: s8 with a shift of 128.
    relu, upper: bounds of an activation function that the clip applies. factor: the tensor is multiplied by it after it
    became integers. table: codes of 8 bits are looked up in one, at every width.
    """

    name: str
    owner: str | None
    pin: int | None = None
    signed: bool = False
    relu: bool = False
    upper: float | None = None
    factor: float = 1.0
    range: tuple[float, float] | None = None
    table: bool = False


@dataclass
class Table:
    """What a graph's parameters are made of; JSON-able."""

    layers: dict[str, LayerRow] = field(default_factory=dict)
    quantizers: dict[str, QuantizerRow] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [asdict(row) for row in self.layers.values()],
            "quantizers": [asdict(row) for row in self.quantizers.values()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Table:
        layers = [LayerRow(**row) for row in data["layers"]]
        rows = [QuantizerRow(**{**row, "range": row["range"] and tuple(row["range"])}) for row in data["quantizers"]]
        return cls({row.name: row for row in layers}, {row.name: row for row in rows})


def store(model: MultiBitModel, assignments: Mapping[str, BitAssignment]) -> dict[str, Array]:
    """The arrays that these assignments need and no other width's: codes, steps and biases per layer and width, grids
    of the quantizers. Codes and steps are whole numbers whose product is the weight; held: the bits that these take
    where zero points make them more than the width."""
    used = {(name, width) for assignment in assignments.values() for name, width in assignment.items()}
    arrays: dict[str, Array] = {}
    weight: CommittedWeight
    for name, weight in weights_of(model):
        layer = name.split(".", 2)[2]  # blocks.<index>.<layer>
        module: Any = model.blocks[model.layers[layer].block].get_submodule(layer)
        for bits in sorted({width.w for used_by, width in used if used_by == layer}):
            row = weight.widths.index(bits)
            codes, steps = weight.multiples(bits)
            arrays[f"{layer}.codes.{bits}"] = codes.cpu().numpy()
            arrays[f"{layer}.steps.{bits}"] = steps.detach().cpu().numpy()
            if (held := weight.held_bits(bits)) != bits:
                arrays[f"{layer}.held.{bits}"] = np.array(held, dtype=np.int8)
            bias = module.bias if module.biases is None else module.biases[row]
            if bias is not None:
                arrays[f"{layer}.bias.{bits}"] = bias.detach().cpu().numpy()
    for path, quantizer in quantizers_of(model):
        assert isinstance(quantizer, ActivationQuantizer)
        for bits in sorted({quantizer.pin or width.a for owner, width in used if owner == quantizer.owner}):
            row = quantizer.widths.index(bits)
            pair = [float(quantizer.steps[row]), float(quantizer.zero_points[row])]
            arrays[f"{path.split('.', 2)[2]}.grid.{bits}"] = np.array(pair, dtype=np.float32)
            if quantizer.tables is not None:
                arrays[f"{path.split('.', 2)[2]}.table.{bits}"] = quantizer.tables[row].cpu().numpy()
    return arrays


def weight_of(arrays: Mapping[str, Array], layer: str, bits: int) -> tuple[Array, Array, int]:
    """Of a layer's weight at a width: whole numbers int8 (O, ...), steps (O,), and the bits that hold the former."""
    codes, steps = arrays[f"{layer}.codes.{bits}"], arrays[f"{layer}.steps.{bits}"]
    return codes, steps, int(arrays.get(f"{layer}.held.{bits}", bits))


def parameters(table: Table, arrays: Mapping[str, Array], assignment: BitAssignment) -> dict[str, Array]:
    """Every parameter of the graph at an assignment, by its name in the graph."""
    widths = dict(assignment.layers)
    found: dict[str, Array] = {}
    scales: dict[str, Array] = {}
    for row in table.quantizers.values():
        own = _quantizer(row, arrays, 8 if row.owner is None else row.pin or widths[row.owner].a)
        scales[row.name] = own["scale"]
        found |= {f"{row.name}.{key}": value for key, value in own.items()}
    for layer in table.layers.values():
        bits = widths[layer.name].w
        codes, step, held = weight_of(arrays, layer.name, bits)
        bias = arrays.get(f"{layer.name}.bias.{bits}")
        input_scale = scales[layer.source] if layer.source else None
        own = layer_integers(codes, step, bias, input_scale, held, layer.transposed)
        found |= {f"{layer.name}.{key}": value for key, value in own.items()}
    return found


def _quantizer(row: QuantizerRow, arrays: Mapping[str, Array], bits: int) -> dict[str, Array]:
    """scale, zero_point and the bounds low and high of the codes; scale_in where a factor follows."""
    if row.range is not None:
        step, top = (row.range[1] - row.range[0]) / 255 or 1.0, 255
        zero = float(np.clip(np.rint(-row.range[0] / step), 0, 255))
    else:
        step, zero = (float(value) for value in arrays[f"{row.name}.grid.{bits}"])
        top = 255 if row.table else 2**bits - 1
    high = top if row.upper is None else min(top, int(np.rint(np.float32(row.upper) / np.float32(step)) + zero))
    low = int(zero) if row.relu else 0
    dtype, shift = (np.int8, 128) if row.signed else (np.uint8, 0)
    codes = {"zero_point": zero, "low": low, "high": max(high, low)}
    found: dict[str, Array] = {key: np.array(int(value) - shift, dtype=dtype) for key, value in codes.items()}
    found["scale"] = np.array(step, dtype=np.float32)
    if row.table:  # a negative index counts from the end
        codes_in = (np.arange(256) if shift == 0 else np.arange(256).astype(np.int8).astype(np.int64)) + shift
        found["table"] = (arrays[f"{row.name}.table.{bits}"][codes_in].astype(np.int64) - shift).astype(dtype)
    if row.factor != 1:
        found["scale_in"] = np.array(step / row.factor, dtype=np.float32)
    return found


def layer_integers(
    codes: Array, step: Array, bias: Array | None, input_scale: Array | None, bits: int, transposed: bool
) -> dict[str, Array]:
    """weight s8, scale (O,), and bias int32 with its bias_scale (bias_float: as it was), float where the input is.
    bits: of the codes; 7 or 8 leaves them as they are."""
    codes, step = _use_free_bits(codes, step, bits)
    if bias is not None and input_scale is not None:
        codes, step = _widen_for_bias(codes, step, bias, float(input_scale))
    found = {"weight": np.ascontiguousarray(codes.T) if transposed else codes, "scale": step}
    if bias is not None and input_scale is not None:
        unit = input_scale * step
        found |= {"bias": np.rint(bias.astype(np.float64) / unit).astype(np.int32), "bias_scale": unit}
        found["bias_float"] = bias
    elif bias is not None:
        found["bias"] = bias
    return found


def _use_free_bits(codes: Array, step: Array, bits: int) -> tuple[Array, Array]:
    """Codes (O, ...) times 2^k and steps (O,) over 2^k: the same weight, exactly, with codes of 7 bits.

    A narrow weight stored in 8 bits leaves bits unused. Using them makes the step smaller, and with it the unit
    s_a * s_w in which the int32 bias is counted. It stops at 7 bits, [-64, 63], so that the sum of two products fits
    the 16 bits of processors without VNNI.
    """
    free = max(0, HELD_BITS - bits)
    return codes * np.int8(2**free), step * np.float32(0.5**free)


def _widen_for_bias(codes: Array, step: Array, bias: Array, input_scale: float) -> tuple[Array, Array]:
    """Codes (O, ...) and steps (O,), the step of a channel widened where its bias (O,) would not fit int32.

    A bias b is stored as round(b / (s_a * s_w)), at most BIAS_LIMIT. Where it exceeds that, the weights of the channel
    are so small beside the bias that coarser codes for them change almost nothing.
    """
    least = (np.abs(bias.astype(np.float64)) / (BIAS_LIMIT * input_scale)).astype(np.float32)
    if not (least > step).any():
        return codes, step
    wider = np.maximum(step, least)
    shrink = grid_shape(step / wider, codes)
    return np.rint(codes * shrink).astype(np.int8), wider


def grid_shape(values: Array, like: Array) -> Array:
    """(O,) -> (O, 1, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
