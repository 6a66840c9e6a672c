"""One weight for several widths in one file: what is stored once, and the operators that make a width's s8 of it.

Three ways, of which a layer takes the one with the fewest bits: codes of each width by themselves; the floor code of
the widest tied width and rounding planes (`artifact.nested`, PTMQ §2); the latent integers and rounding planes. The
last two are one arithmetic, q_b = clip(floor(x * factor + z/2) + R): x the latent integers and the factor rho_b, or x
the floor code and the factor 2^-k. Rounding to nearest is (floor(2 u) + 1) >> 1. All of it is exact in float32. What
leaves it are the whole numbers of the weight, which are the codes where no channel has a zero point z (runtime.grid).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ptmq_lightning.artifact.nested import NestedWeight, nested_of
from ptmq_lightning.export.onnx_packed import INT8, SIGN, as_signed, as_weight, unpacked
from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.export.values import Array, grid_shape
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.weights import CommittedWeight, MultiBitWeight

FLOAT = 1  # of onnx.TensorProto
NOTHING: Array = np.zeros((0, 1), np.uint8)


@dataclass
class Shared:
    """Integers x (O, ...) of `bits` bits and planes R (P, O, ...). factors: width -> (O,), twice as large where it is
    rounded to nearest. plane_of: width -> plane; a width without one is rounded to nearest. zeros: width -> z int8 (O,)
    in half levels. Widths without a factor have whole numbers of their own."""

    integers: Array
    bits: int
    factors: dict[int, Array]
    planes: Array
    plane_of: Mapping[int, int]
    own: dict[int, Array] = field(default_factory=dict)
    zeros: dict[int, Array] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bits per weight."""
        return (self.bits + len(self.planes) if self.factors else 0) + sum(self.own)

    def held(self, bits: int) -> int:
        """Bits that hold the whole numbers of a width."""
        return bits + (bits in self.zeros)

    def shift(self, bits: int) -> Array:
        """What zero points add to the position that is cut to a whole number, float32 (O,)."""
        return self.zeros[bits] * np.float32(0.5 if bits in self.plane_of else 1)

    def spread(self, bits: int) -> tuple[Array, Array]:
        """m and c, float32 (O,): the whole numbers are m * codes - c."""
        times, less = (_array(part.float()) for part in grid.spread(torch.from_numpy(self.zeros[bits])))
        return times, less

    def whole(self, bits: int) -> Array:
        """The whole numbers int8 (O, ...) of a width, as the graph computes them."""
        if bits not in self.factors:
            return self.own[bits]
        x = self.integers.astype(np.float32) * grid_shape(self.factors[bits], self.integers)
        x = np.floor(x + grid_shape(self.shift(bits), x) if bits in self.zeros else x)
        x = x + self.planes[self.plane_of[bits]] if bits in self.plane_of else np.floor((x + 1) * np.float32(0.5))
        x = np.clip(x, *grid.limits(bits))
        if bits in self.zeros:
            times, less = (grid_shape(part, x) for part in self.spread(bits))
            x = x * times - less
        made: Array = x.astype(np.int8)
        return made


def shared(weight: CommittedWeight, widths: Sequence[int]) -> Shared:
    """The smallest way to store a weight for these widths."""
    own = {bits: _array(weight.multiples(bits)[0]) for bits in widths}
    zeros = {bits: _array(zero) for bits in widths if (zero := weight.zero_point(bits)) is not None}
    ways = [Shared(NOTHING, 0, {}, NOTHING, {}, own)]
    if isinstance(weight, NestedWeight):
        ways.append(_nested(weight, own))
    if isinstance(weight, MultiBitWeight) and weight.kind != "offset":
        needed = _only(weight, widths)
        ways += [_nested(nested_of(needed), own), _latent(needed)]
    for way in ways:
        way.zeros = zeros
    exact = (way for way in ways if all(np.array_equal(way.whole(bits), own[bits]) for bits in widths))
    return min(exact, key=lambda way: way.size)


def _only(weight: MultiBitWeight, widths: Sequence[int]) -> MultiBitWeight:
    """The weight with these widths and no other."""
    rows = [weight.widths.index(bits) for bits in widths]
    parts = weight.steps[rows].detach(), weight.ratios[rows].detach()
    zeros = None if weight.zero_points is None else weight.zero_points[rows]
    made = MultiBitWeight(weight.latent, weight.latent_step, tuple(widths), *parts, zeros)
    used = {bits: weight.plane_of[bits] for bits in widths if bits in weight.plane_of}
    planes = sorted(set(used.values()))
    if weight.kind == "planes" and planes:
        made.set_rounding("planes", weight.rounding[planes], {b: planes.index(p) for b, p in used.items()})
    elif weight.kind == "latent":
        made.set_rounding("latent", weight.rounding, {})
    return made


def _nested(weight: NestedWeight, own: Mapping[int, Array]) -> Shared:
    tied = [bits for bits in weight.tied if bits in own]
    if not tied:
        return Shared(NOTHING, 0, {}, NOTHING, {}, dict(own))
    factors = {bits: np.exp2(-_array(weight.shifts[weight.tied.index(bits)]).astype(np.float32)) for bits in tied}
    rows = sorted({weight.plane_of[bits] for bits in tied if bits in weight.plane_of})
    planes = _array(weight.rounding)[rows] if rows else NOTHING
    plane_of = {bits: rows.index(weight.plane_of[bits]) for bits in tied if bits in weight.plane_of}
    rest = {bits: codes for bits, codes in own.items() if bits not in tied}
    return Shared(_array(weight.floor), max(weight.tied) + (weight.kind == "nearest"), factors, planes, plane_of, rest)


def _latent(weight: MultiBitWeight) -> Shared:
    integers = _array(weight.integers)
    largest = max(int(integers.max(initial=0)), -int(integers.min(initial=0)) - 1)
    rho = {bits: _array(weight.ratios[row]) for row, bits in enumerate(weight.widths)}
    factors = {bits: own if bits in weight.plane_of else own * np.float32(2) for bits, own in rho.items()}
    planes = _array(weight.rounding) if weight.kind == "planes" else NOTHING
    return Shared(integers, largest.bit_length() + 1, factors, planes, weight.plane_of)


def _array(tensor: Tensor) -> Array:
    found: Array = tensor.detach().cpu().numpy()
    return found


class SharedWriter:
    """Writes s8 weights of branches; what they are made of goes to the graph around them, once.

    weights: layer -> (its Shared, whether it is stored (C, O)).
    """

    def __init__(self, weights: Mapping[str, tuple[Shared, bool]]) -> None:
        self.weights = weights
        self._unpacked: dict[str, str] = {}  # name in the file -> what is unpacked of it, in the graph around

    def write(self, w: Writer, path: str, bits: int, assignment: str) -> str:
        """The s8 weight `<path>.weight` of a branch in which the layer has so many bits."""
        way, turned = self.weights[path]
        name, wanted = f"{path}.weight", w.parameters[f"{path}.weight"]
        up = max(0, SIGN + 1 - way.held(bits))
        codes = way.whole(bits)
        if not np.array_equal((codes.T if turned else codes) * np.int8(1 << up), wanted):  # widened for its bias
            return as_weight(w, name, f"{name}.{assignment}", wanted) or self._bytes(w, f"{name}.{assignment}", wanted)
        if bits not in way.factors:
            return as_weight(w, name, f"{name}.{bits}", wanted) or self._bytes(w, f"{name}.{bits}", wanted)
        return self._made(w, path, bits, up)

    def _bytes(self, w: Writer, stored: str, wanted: Array) -> str:
        name = stored.rpartition(".")[0]
        return as_signed(w, name, unpacked(w, stored, wanted.view(np.uint8), 8), wanted.shape)

    def _made(self, w: Writer, path: str, bits: int, up: int) -> str:
        way, turned = self.weights[path]
        name, axes = f"{path}.weight", way.integers.ndim
        across = (1, -1) if turned else (-1, *[1] * (axes - 1))

        def per_channel(values: Array) -> str:
            return w.constant(values.reshape(across), np.float32)

        x = w.step("Mul", [self._integers(w.outer, path), per_channel(way.factors[bits])])
        if bits in way.zeros:
            x = w.step("Add", [x, per_channel(way.shift(bits))])
        x = w.step("Floor", [x])
        if bits in way.plane_of:
            x = w.step("Add", [x, self._plane(w.outer, path, way.plane_of[bits])])
        else:  # (y + 1) >> 1 of a whole number y
            x = w.step("Ceil", [w.step("Mul", [x, w.constant(0.5, np.float32)])])
        # A runtime keeps all that it computes here until the file is open: a byte per weight where that is possible.
        limits, unit = grid.limits(bits), [w.constant(0.5**up, np.float32), w.constant(0, np.int8)]
        if bits not in way.zeros:
            x = w.step("QuantizeLinear", [x, *unit])
            x = w.step("Clip", [x, *(w.constant(end * 2**up, np.int8) for end in limits)])
            return str(w.node("Cast", [x], name, to=INT8))
        x = w.step("Clip", [x, *(w.constant(end, np.float32) for end in limits)])
        times, less = way.spread(bits)
        x = w.step("Sub", [w.step("Mul", [x, per_channel(times)]), per_channel(less)])
        return str(w.node("QuantizeLinear", [x, *unit], name))

    def _integers(self, w: Writer, path: str) -> str:
        """x as float32, unpacked before all branches: its lowest 8 bits and those above, without a sign, and what makes
        it signed again."""
        way, turned = self.weights[path]
        if (name := f"{path}.weight.x") in self._unpacked:
            return self._unpacked[name]
        offset = 1 << (way.bits - 1)
        values = (way.integers.T if turned else way.integers).astype(np.int32) + offset
        x = self._float(w, name, values & 255, min(way.bits, 8))
        if way.bits > 8:
            high = self._float(w, f"{name}8", values >> 8, way.bits - 8)
            x = w.step("Add", [x, w.step("Mul", [high, w.constant(256, np.float32)])])
        self._unpacked[name] = w.step("Sub", [x, w.constant(offset, np.float32)])
        return self._unpacked[name]

    def _plane(self, w: Writer, path: str, index: int) -> str:
        """The rounding bits of a plane as float32, unpacked before all branches."""
        way, turned = self.weights[path]
        if (name := f"{path}.weight.plane{index}") not in self._unpacked:
            plane = way.planes[index]
            self._unpacked[name] = self._float(w, name, plane.T if turned else plane, 1)
        return self._unpacked[name]

    def _float(self, w: Writer, name: str, values: Array, bits: int) -> str:
        flat = unpacked(w, name, values.astype(np.uint8), bits)
        return w.step("Cast", [w.step("Reshape", [flat, w.constant(values.shape)])], to=FLOAT)
