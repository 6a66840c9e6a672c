"""Where the channels of a tensor go: which operations only move values, and which layers read a tensor at the end.

A per-channel scale and shift may be moved over an operation that only moves values or averages them over other axes.
A per-channel positive scale alone also passes a ReLU, a max pooling and zero padding.
Shapes are those of `node.meta["shape"]`; an axis is counted from the front.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, fx, nn

from ptmq_lightning.models.nodes import bind, module_of

SAME = {"contiguous", "clone", "to", "float"}
REGROUP = {"reshape", "flatten", "Flatten", "unflatten", "Unflatten", "squeeze", "unsqueeze"}
_AVERAGE = {"AdaptiveAvgPool2d", "adaptive_avg_pool2d"}
_HOMOGENEOUS = {
    "ReLU",
    "relu",
    "MaxPool2d",
    "max_pool2d",
    "AdaptiveMaxPool2d",
    "adaptive_max_pool2d",
    "AvgPool2d",
    "avg_pool2d",
}


def kind(gm: fx.GraphModule, node: fx.Node) -> str:
    """Name of what a node does: the class of a module, the name of a function or method."""
    if (module := module_of(gm, node)) is not None:
        return type(module).__name__
    return str(node.target) if node.op != "call_function" else node.target.__name__  # type: ignore[union-attr]


def carry(gm: fx.GraphModule, user: fx.Node, node: fx.Node, axis: int, *, scale_only: bool = False) -> int | None:
    """Axis of the channels in the output of `user`, which reads `node` with its channels at `axis`; None if they mix.

    scale_only: a positive scale without a shift is to pass.
    """
    if not user.args or user.args[0] is not node or user.all_input_nodes != [node] or "shape" not in user.meta:
        return None
    name, shape, out = kind(gm, user), node.meta["shape"], user.meta["shape"]
    if name in SAME or (name in _AVERAGE and axis == len(shape) - 3) or (scale_only and _homogeneous(user, name, axis)):
        return axis
    if name in REGROUP:
        return _regrouped(shape, out, axis)
    if name in ("permute", "transpose"):
        return _order(user, name, len(shape)).index(axis)
    if name == "getitem":
        return _indexed(user.args[1], len(shape), axis)
    if name in ("mean", "roll"):
        return _along(user, name, shape, axis)
    return None


def readers(
    gm: fx.GraphModule, node: fx.Node, axis: int, *, scale_only: bool = False
) -> tuple[list[fx.Node], str | None]:
    """Layers that read a tensor's channels and nothing else -> (layer nodes, None), or ([], what else reads it)."""
    found: list[fx.Node] = []
    for user in node.users:
        layer = module_of(gm, user)
        linear = isinstance(layer, nn.Linear) and axis == len(node.meta["shape"]) - 1
        convolution = isinstance(layer, nn.Conv2d) and axis == len(node.meta["shape"]) - 3
        if linear or convolution:
            if convolution and not scale_only and _pads(layer):
                return [], f"read by {user.target}, whose zero padding lets no shift pass"
            found.append(user)
            continue
        moved = carry(gm, user, node, axis, scale_only=scale_only)
        if moved is None:
            return [], f"read by {user.name} ({kind(gm, user)})"
        more, reason = readers(gm, user, moved, scale_only=scale_only)
        if reason:
            return [], reason
        found += more
    return (found, None) if found else ([], "read by no layer")


def per_channel(value: Tensor, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """A constant that multiplies a tensor of `shape`, as a vector over its channels at `axis`; None if it is none."""
    full = (1,) * (len(shape) - value.ndim) + tuple(value.shape)
    wanted = tuple(size if position == axis else 1 for position, size in enumerate(shape))
    return value.reshape(-1) if full == wanted else None


def _pads(layer: Any) -> bool:
    return layer.padding == "same" or (layer.padding != "valid" and any(layer.padding))


def _homogeneous(user: fx.Node, name: str, axis: int) -> bool:
    if name == "pad":
        given = bind(user, ("input", "pad", "mode", "value"))
        untouched = len(given["pad"]) // 2 <= len(user.meta["shape"]) - 1 - axis
        return untouched and given.get("mode", "constant") == "constant" and not given.get("value")
    return name in _HOMOGENEOUS


def _regrouped(shape: tuple[int, ...], out: tuple[int, ...], axis: int) -> int | None:
    for position, size in enumerate(out):
        same = size == shape[axis] and math.prod(out[:position]) == math.prod(shape[:axis])
        if same and math.prod(out[position + 1 :]) == math.prod(shape[axis + 1 :]):
            return position
    return None


def _order(user: fx.Node, name: str, ndim: int) -> list[int]:
    """Source axis of every output axis."""
    if name == "permute":
        given: Any = user.kwargs.get("dims", user.args[1:])
        given = given[0] if isinstance(given[0], (tuple, list)) else given
        return [axis % ndim for axis in given]
    axes: Any = (*user.args[1:], *user.kwargs.values())
    one, two = (axis % ndim for axis in axes)
    order = list(range(ndim))
    order[one], order[two] = two, one
    return order


def _indexed(index: Any, ndim: int, axis: int) -> int | None:
    index = index if isinstance(index, tuple) else (index,)
    used = sum(i is not None and i is not Ellipsis for i in index)
    rest = [slice(None)] * (ndim - used)
    at = index.index(Ellipsis) if Ellipsis in index else len(index)
    source = position = 0
    for item in (*index[:at], *rest, *index[at + 1 :]):
        if not (item is None or isinstance(item, (int, slice))):
            return None
        if item is not None and source == axis:
            return position if item == slice(None) else None
        source += item is not None
        position += not isinstance(item, int)
    return None


def _along(user: fx.Node, name: str, shape: tuple[int, ...], axis: int) -> int | None:
    """mean(dim, keepdim) and roll(shifts, dims) along other axes than the channels'."""
    given = bind(user, ("input", "dim", "keepdim") if name == "mean" else ("input", "shifts", "dims"))
    dims = given.get("dim" if name == "mean" else "dims")
    if dims is None:
        return None
    dims = [dim % len(shape) for dim in (dims if isinstance(dims, (tuple, list)) else [dims])]
    if axis in dims:
        return None
    return axis if name == "roll" or given.get("keepdim") else axis - sum(dim < axis for dim in dims)
