"""Rotation inside attention heads: what their products read gets even channels, the network stays the same function.

For an orthogonal R, (q R)(k R)^T = q k^T, and a (v R) = (a v) R, which the layer behind it undoes. So R goes into the
rows of the layers that make q, k and v, and into the columns of the layer that reads a v; nothing is left to do at run
time. One quantization step serves all channels of such a tensor: a channel far larger than the rest makes it coarse
for all, and R spreads that channel over its head. R is the cosine transform, which is orthogonal at every size.

Source: Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", §4, with Hadamard matrices. What
it does besides, a rotation of the tensor that all blocks add to, is left out: it makes ViT-Tiny far worse.

Where the channels go is found by numbering them: the numbers are sent through the operations that only move values.
P heads, C channels of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, fx, nn

from ptmq_lightning.models.absorb import FoldReport, rotate_input, rotate_output
from ptmq_lightning.models.flow import REGROUP, SAME, kind
from ptmq_lightning.models.nodes import execute, is_size, module_of

_MOVES = REGROUP | {"permute", "transpose", "getitem", "unbind", "chunk", "split", "roll"}


@dataclass(frozen=True)
class _Operand:
    """A layer's output as an operand of a product of two tensors.

    numbers: of the layer's output channels, (..., C), one row for each matrix of the product. summed: whether the
    product sums over these channels; else its own output has them.
    """

    node: fx.Node
    layer: Any
    numbers: Tensor
    summed: bool

    @property
    def heads(self) -> Tensor:
        """(P, C)"""
        return self.numbers.flatten(0, -2).unique(dim=0)


def rotate(gm: fx.GraphModule) -> FoldReport:
    """Rotate the heads of every attention that data flow allows; gm (traced, norms folded) is changed."""
    report, called = FoldReport(), Counter(node.target for node in gm.graph.nodes if node.op == "call_module")
    found: dict[fx.Node, dict[int, _Operand]] = {}
    for node in gm.graph.nodes:
        if _mixes(layer := module_of(gm, node)) and called[node.target] == 1:
            for product, side, operand in _operands(gm, node, layer):
                found.setdefault(product, {})[side] = operand
    for product, operands in found.items():
        summed = [operand for operand in operands.values() if operand.summed]
        if len(summed) == 2:
            _rotate_both(summed, report)
        for side, operand in operands.items():
            if not operand.summed:
                _rotate_through(gm, product, side, operand, called, report)
    return report


def _rotate_both(operands: list[_Operand], report: FoldReport) -> None:
    """Queries and keys: the product sums over the rotated channels."""
    for operand in operands:
        rotate_output(operand.layer, operand.heads, _rotation(operand.heads.shape[1]))
    report.folded.append(
        ("queries and keys (rotation)", ", ".join(dict.fromkeys(str(o.node.target) for o in operands)))
    )


def _rotate_through(
    gm: fx.GraphModule, product: fx.Node, side: int, value: _Operand, called: Counter[Any], report: FoldReport
) -> None:
    """Values: the layers that read the product undo it."""
    numbers = value.numbers.unsqueeze(-1 if side == 0 else -2).expand(product.meta["shape"])
    columns: dict[fx.Node, Tensor] = {}
    for reader, _, moved in _ends(gm, product, numbers):
        layer = module_of(gm, reader)
        own = _columns(layer, moved, value.heads) if _mixes(layer) and called[reader.target] == 1 else None
        if own is None or reader in columns:
            report.kept.append((f"{value.node.target} (rotation)", f"its heads are read by {reader.name}"))
            return
        columns[reader] = own
    rotation = _rotation(value.heads.shape[1])
    rotate_output(value.layer, value.heads, rotation)
    for reader, own in columns.items():
        rotate_input(module_of(gm, reader), own, rotation)  # type: ignore[arg-type]
    report.folded.append((f"{value.node.target} (rotation)", ", ".join(str(reader.target) for reader in columns)))


def _operands(gm: fx.GraphModule, node: fx.Node, layer: Any) -> Iterator[tuple[fx.Node, int, _Operand]]:
    """(product, side, operand) for every product that alone reads the channels that it has of the layer."""
    shape, channel = node.meta["shape"], _channel(layer)
    numbers = torch.arange(shape[channel]).reshape(-1, *[1] * (-1 - channel)).expand(shape)
    ends = list(_ends(gm, node, numbers))
    if not any(kind(gm, reader) == "matmul" for reader, _, _ in ends):
        return
    reads = torch.stack([torch.bincount(own.unique(), minlength=shape[channel]) for _, _, own in ends]).sum(0)
    for reader, read, own in ends:
        if kind(gm, reader) != "matmul" or own.ndim < 3:
            continue
        side = 0 if reader.args[0] is read else 1
        # channels lie along one of the last two axes, -1 or -2, and are the same at every place of the other, -3 - axis
        along = next((axis for axis in (-1, -2) if bool((own == own.narrow(-3 - axis, 0, 1)).all())), None)
        if along is None:
            continue
        operand = _Operand(node, layer, own.select(-3 - along, 0), (side == 0) == (along == -1))
        heads = operand.heads
        if len(heads.unique()) == heads.numel() > len(heads) and bool((reads[heads] == 1).all()):
            yield reader, side, operand


def _ends(gm: fx.GraphModule, node: fx.Node, numbers: Any) -> Iterator[tuple[fx.Node, fx.Node, Tensor]]:
    """(reader, what it reads, numbers there) of all that reads a tensor behind operations that only move its values."""
    for user in node.users:
        name = kind(gm, user)
        if is_size(user):
            continue
        if user.all_input_nodes == [node] and (name in SAME or _scales(user, name)):
            yield from _ends(gm, user, numbers)
        elif user.all_input_nodes == [node] and name in _MOVES:
            yield from _ends(gm, user, execute(gm, user.op, user.target, (numbers, *user.args[1:]), user.kwargs))
        else:
            yield user, node, numbers


def _scales(user: fx.Node, name: str) -> bool:
    """Whether a node multiplies or divides the tensor by a number."""
    number = [isinstance(factor, (int, float)) for factor in user.args]
    return (name == "mul" and sum(number) == 1) or (name == "truediv" and number == [False, True])


def _mixes(layer: Any) -> bool:
    """Whether the layer may read or make any mixture of channels."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _channel(layer: Any) -> int:
    return -1 if isinstance(layer, nn.Linear) else -3


def _columns(layer: Any, numbers: Tensor, heads: Tensor) -> Tensor | None:
    """Which inputs of the layer hold the channels of the heads (P, C); None where it is not each of them once."""
    if numbers.ndim < -_channel(layer):
        return None
    rows = numbers.movedim(_channel(layer), -1).flatten(0, -2)
    if not bool((rows == rows[0]).all()) or not torch.equal(rows[0].sort().values, heads.flatten().sort().values):
        return None
    place = torch.empty(int(heads.max()) + 1, dtype=torch.long)
    place[rows[0]] = torch.arange(len(rows[0]))
    return place[heads]


def _rotation(size: int) -> Tensor:
    """Orthogonal (C, C), float64."""
    return torch.from_numpy(dct(np.eye(size), axis=0, norm="ortho"))
