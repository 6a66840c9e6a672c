"""What the layers of a unit compute in an iteration, each of it once for all of them and all drawn widths.

A small block's step waits for PyTorch to start operations, hundreds of them on tensors of a few numbers. So whatever
is the same function of every layer's variables runs on one flat tensor: the soft rounding h(V) and its regularizer,
and the step sizes, which are learned as logarithms. A layer outside of the context computes its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ptmq_lightning.quant import kernels


class Soft(NamedTuple):
    """A rounding variable V (O, ...), to which gradients go, h of it and dh/dV, each (O, n)."""

    v: Tensor
    h: Tensor
    slope: Tensor


class _Penalty(torch.autograd.Function):
    """sum of 1 - |2h(V) - 1|^beta over all V, a scalar, from h and dh/dV (n,) of all of them."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, slope: Tensor, beta: Tensor, *v: Tensor) -> Tensor:
        total, gradient = kernels.penalty(h, slope, beta)
        ctx.save_for_backward(gradient)
        ctx.shapes = [x.shape for x in v]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        parts = (gradient * grad).split([shape.numel() for shape in ctx.shapes])
        return None, None, None, *[part.view(shape) for part, shape in zip(parts, ctx.shapes, strict=True)]


class Softened:
    """h of rounding variables V of any shapes, computed as one."""

    def __init__(self, variables: Sequence[Tensor]) -> None:
        self.variables = variables
        with torch.no_grad():
            flat = torch.cat([v.flatten() for v in variables])
            self.h, self.slope = kernels.rectify(flat)

    def __iter__(self) -> Iterator[Soft]:
        sizes = [v.numel() for v in self.variables]
        for v, h, slope in zip(self.variables, self.h.split(sizes), self.slope.split(sizes), strict=True):
            yield Soft(v, h.view(len(v), -1), slope.view(len(v), -1))

    def penalty(self, beta: Tensor) -> Tensor:
        """sum of 1 - |2h(V) - 1|^beta, a scalar (PTMQ §1.5); beta: a scalar."""
        total: Tensor = _Penalty.apply(self.h, self.slope, beta, *self.variables)  # type: ignore[no-untyped-call]
        return total


Asked = Sequence[tuple[Any, Collection[int]]]  # layers and the widths at which they will run


@contextmanager
def together(weights: Asked, inputs: Asked) -> Iterator[list[tuple[float, Softened]]]:
    """Context in which layers have their soft roundings and step sizes at hand.

    Args:
        weights: each `LearnedWeight` of a unit, and the widths at which it will run: no others, as a step size that
            nothing reads would get a gradient of 0 instead of none, and Adam would move it.
        inputs: the same of each `TrainableActivation`.

    Yields:
        The soft roundings, and what the penalty of each counts.
    """
    try:
        _make_step_sizes(weights, inputs)
        yield _soften(weights)
    finally:
        for layer, _ in (*weights, *inputs):
            layer.now.clear()
        for weight, _ in weights:
            weight.soft.clear()


def _make_step_sizes(weights: Asked, inputs: Asked) -> None:
    """exp(log s) of all activations, and s exp(log gain) of all weights whose step sizes are learned."""
    learned = [(w, b, w.log_gain[str(b)], w.rows[b]) for w, widths in weights if w.log_gain for b in widths]
    if learned:
        gains = torch.cat([gain for *_, gain, _ in learned]).exp()
        steps = torch.cat([row for *_, row in learned]) * gains
        parts = steps.split([len(row) for *_, row in learned])
        for (weight, bits, *_), step in zip(learned, parts, strict=True):
            weight.now[bits] = step
    places = [(quantizer, bits) for quantizer, widths in inputs for bits in widths]
    if places:
        logs = torch.stack([quantizer.log_step[str(bits)] for quantizer, bits in places])
        for (quantizer, bits), step in zip(places, logs.exp().unbind(), strict=True):
            quantizer.now[bits] = step


def _soften(weights: Asked) -> list[tuple[float, Softened]]:
    """h of every V that is read, widths that share one read it once."""
    places: dict[float, list[tuple[Any, list[int], Tensor]]] = {}  # of one share: weight, widths, V
    for weight, widths in weights:
        readers: dict[int, tuple[Tensor, list[int]]] = {}
        for bits, v in weight.variables(widths).items():
            readers.setdefault(id(v), (v, []))[1].append(bits)
        share = 1 / len(readers) if weight.averaged and readers else 1.0
        places.setdefault(share, []).extend((weight, bits, v) for v, bits in readers.values())
    found = [(share, of, Softened([v for *_, v in of])) for share, of in places.items() if of]
    for _, of, softened in found:
        for (weight, widths, _), soft in zip(of, softened, strict=True):
            weight.soft |= dict.fromkeys(widths, soft)
    return [(share, softened) for share, _, softened in found]
