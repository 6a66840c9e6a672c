"""Operations that only move values or take the largest of some, for ONNX: they work on integers as on floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ptmq_lightning.export.flow import CONSTANT, Op
from ptmq_lightning.export.onnx_emit import Emit, argument, axes_of, pair, rank_of, refuse, shape_of, with_batch
from ptmq_lightning.export.onnx_writer import Writer

END = 2**62  # of an axis, whatever its size


def _reshape(w: Writer, op: Op, names: Sequence[str]) -> str:
    """The shape at a batch of two tells the sizes, the batch is what is left."""
    sizes = with_batch(op)
    if op.key == "reshape":
        asked = op.args[1] if isinstance(op.args[1], (tuple, list)) else op.args[1:]
        sizes = [size if isinstance(size, int) else -1 for size in asked]
    if sizes.count(-1) > 1:
        raise refuse(op, "it leaves more than one size open")
    return str(w.node("Reshape", [names[0], w.constant(sizes)], op.name))


def _permute(w: Writer, op: Op, names: Sequence[str]) -> str:
    given = argument(op, 1, "dims")
    axes = given if isinstance(given, (tuple, list)) else op.args[1:]
    return str(w.node("Transpose", list(names[:1]), op.name, perm=axes_of(axes, rank_of(op))))


def _transpose(w: Writer, op: Op, names: Sequence[str]) -> str:
    order = list(range(rank_of(op)))
    given = (*op.args[1:], *op.kwargs.values()) or (0, 1)  # Tensor.t
    one, two = axes_of(given, len(order))
    order[one], order[two] = order[two], order[one]
    return str(w.node("Transpose", list(names[:1]), op.name, perm=order))


def _movedim(w: Writer, op: Op, names: Sequence[str]) -> str:
    rank = rank_of(op)
    source, target = (axes_of(argument(op, i, key), rank) for i, key in ((1, "source"), (2, "destination")))
    order = [axis for axis in range(rank) if axis not in source]
    for axis, place in sorted(zip(source, target, strict=True), key=lambda move: move[1]):
        order.insert(place, axis)
    return str(w.node("Transpose", list(names[:1]), op.name, perm=order))


def _unsqueeze(w: Writer, op: Op, names: Sequence[str]) -> str:
    axis = axes_of(argument(op, 1, "dim"), rank_of(op) + 1)
    return str(w.node("Unsqueeze", [names[0], w.constant(axis)], op.name))


def _squeeze(w: Writer, op: Op, names: Sequence[str]) -> str:
    shape = shape_of(op.source)
    axes = [axis for axis in axes_of(argument(op, 1, "dim"), len(shape)) if shape[axis] == 1]
    return str(w.node("Squeeze", [names[0], w.constant(axes)], op.name)) if axes else names[0]


def same(w: Writer, op: Op, names: Sequence[str]) -> str:
    return names[0]


def _getitem(w: Writer, op: Op, names: Sequence[str]) -> str:
    """Slices with a step, single indices, None, Ellipsis, and one list of constant indices."""
    x, axis, sliced, gone, new = names[0], 0, list[tuple[int, int, int, int]](), list[int](), list[int]()
    picked: tuple[Any, int] | None = None
    for item in _whole_index(op):
        if item is None:
            new.append(axis - len(gone) + len(new))
            continue
        if isinstance(item, int):
            sliced.append((item, item + 1 if item != -1 else END, axis, 1))
            gone.append(axis)
        elif isinstance(item, slice) and all(isinstance(v, (int, type(None))) for v in (item.start, item.stop)):
            if item != slice(None):
                sliced.append((item.start or 0, END if item.stop is None else item.stop, axis, item.step or 1))
        elif isinstance(item, (list, Op)) and picked is None:
            picked = _indices(op, item), axis
        else:
            raise refuse(op, f"the index {item!r}")
        axis += 1
    if picked:
        x = w.node("Gather", [x, w.constant(picked[0])], op.name, axis=picked[1])
    if sliced:
        starts, stops, axes, steps = (w.constant(column) for column in zip(*sliced, strict=True))
        x = w.node("Slice", [x, starts, stops, axes, steps], op.name)
    x = w.node("Squeeze", [x, w.constant(gone)], op.name) if gone else x
    return str(w.node("Unsqueeze", [x, w.constant(new)], op.name)) if new else x


def _whole_index(op: Op) -> list[Any]:
    """The index with its Ellipsis written out."""
    index = list(op.args[1]) if isinstance(op.args[1], tuple) else [op.args[1]]
    if not any(item is Ellipsis for item in index):
        return index
    at = next(i for i, item in enumerate(index) if item is Ellipsis)
    free = rank_of(op) - sum(item is not None and item is not Ellipsis for item in index)
    return [*index[:at], *[slice(None)] * free, *index[at + 1 :]]


def _indices(op: Op, item: Any) -> Any:
    values = np.asarray(item) if isinstance(item, list) else None
    if isinstance(item, Op) and item.key == CONSTANT and item.value is not None:
        values = item.value.cpu().numpy()
    if values is None or values.dtype.kind not in "iu" or values.ndim != 1:
        raise refuse(op, "an index that is neither numbers nor a constant list of them")
    return values


def _select(w: Writer, op: Op, names: Sequence[str]) -> str:
    (axis,), at = axes_of(argument(op, 1, "dim"), rank_of(op)), int(argument(op, 2, "index"))
    ends = w.constant([at]), w.constant([at + 1 if at != -1 else END]), w.constant([axis])
    return str(w.node("Squeeze", [w.node("Slice", [names[0], *ends], op.name), ends[2]], op.name))


def _narrow(w: Writer, op: Op, names: Sequence[str]) -> str:
    (axis,), start = axes_of(argument(op, 1, "dim"), rank_of(op)), int(argument(op, 2, "start"))
    stop = start + int(argument(op, 3, "length"))
    return str(w.node("Slice", [names[0], *(w.constant([v]) for v in (start, stop, axis))], op.name))


def _index_select(w: Writer, op: Op, names: Sequence[str]) -> str:
    (axis,), indices = axes_of(argument(op, 1, "dim"), rank_of(op)), _indices(op, argument(op, 2, "index"))
    return str(w.node("Gather", [names[0], w.constant(indices)], op.name, axis=axis))


def _flip(w: Writer, op: Op, names: Sequence[str]) -> str:
    given = argument(op, 1, "dims")
    axes = axes_of(given if isinstance(given, (tuple, list)) else op.args[1:], rank_of(op))
    ends = ([-1] * len(axes), [-END] * len(axes), axes, [-1] * len(axes))
    return str(w.node("Slice", [names[0], *(w.constant(column) for column in ends)], op.name))


def _max_pool(w: Writer, op: Op, names: Sequence[str]) -> str:
    axes = len(shape_of(op)) - 2
    size = pair(argument(op, 1, "kernel_size"), axes)
    stride = pair(argument(op, 2, "stride") or size, axes)
    padding, dilation = (pair(argument(op, i, key, d), axes) for i, key, d in ((3, "padding", 0), (4, "dilation", 1)))
    ceil = int(bool(argument(op, 5, "ceil_mode", False)))
    return str(
        w.node("MaxPool", list(names[:1]), op.name, kernel_shape=size, strides=stride, pads=padding * 2,
               dilations=dilation, ceil_mode=ceil)
    )  # fmt: skip


def _roll(w: Writer, op: Op, names: Sequence[str]) -> str:
    """A cyclic shift along each axis: the tail in front of the head."""
    shifts, axes, x = argument(op, 1, "shifts"), argument(op, 2, "dims"), names[0]
    shifts, axes = ([v] if isinstance(v, int) else list(v) for v in (shifts, axes))
    for shift, axis in zip(shifts, axes, strict=True):
        size = shape_of(op)[axis]
        if shift % size:
            tail, one = [size - shift % size], w.constant([axis])
            last = w.node("Slice", [x, w.constant(tail), w.constant([size]), one], op.name)
            first = w.node("Slice", [x, w.constant([0]), w.constant(tail), one], op.name)
            x = w.node("Concat", [last, first], op.name, axis=axis)
    return x


MOVES: dict[str, Emit] = {
    **{key: _reshape for key in ("reshape", "flatten", "Flatten", "unflatten", "Unflatten")},
    **{key: _transpose for key in ("transpose", "swapaxes", "swapdims", "t")},
    **{key: same for key in ("contiguous", "Identity", "clone", "detach")},
    **{key: _max_pool for key in ("MaxPool2d", "max_pool2d", "MaxPool1d", "max_pool1d")},
    "permute": _permute, "movedim": _movedim, "unsqueeze": _unsqueeze, "squeeze": _squeeze, "getitem": _getitem,
    "select": _select, "narrow": _narrow, "index_select": _index_select, "flip": _flip, "roll": _roll,
}  # fmt: skip
PADS = ("pad", "ZeroPad2d", "ConstantPad2d", "ReflectionPad2d", "ReplicationPad2d")
_MODES = {"ReflectionPad2d": "reflect", "ReplicationPad2d": "edge", "replicate": "edge", "circular": "wrap"}


def pads_zeros(op: Op) -> bool:
    return _mode(op) == "constant" and not _padded_with(op)


def pad(w: Writer, op: Op, x: str, zero: str) -> str:
    """Padding with a constant or with the tensor's own values; zero: the name of what zeros are, in the type of x."""
    widths = list(argument(op, 1, "padding") if op.module is not None else argument(op, 1, "pad"))
    rank = rank_of(op)
    before, after = [0] * rank, [0] * rank
    for i in range(len(widths) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = widths[2 * i], widths[2 * i + 1]
    inputs = [x, w.constant(before + after)]
    if _mode(op) == "constant":
        inputs.append(zero if pads_zeros(op) else w.constant(_padded_with(op), np.float32))
    return str(w.node("Pad", inputs, op.name, mode=_mode(op)))


def _mode(op: Op) -> str:
    mode = op.key if op.module is not None else argument(op, 2, "mode", "constant")
    return _MODES.get(mode, "constant" if op.module is not None else mode)


def _padded_with(op: Op) -> float:
    value = argument(op, 3, "value", 0.0)
    return 0.0 if value is None else float(value)
