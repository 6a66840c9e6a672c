"""Operations without weights, from the names of `artifact.tables` to TFLite's integer operators: the table.

An emitter takes (converter, operation, values) and gives a value. What it makes on another grid than the plan's is
requantized by who called it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.litert_convert import (
    BOTTOM,
    SAME,
    VALID,
    Emit,
    Grid,
    LiteRtConverter,
    Value,
    channels_last,
    padding_of,
)
from ptmq_lightning.export.onnx_emit import argument, axes_of, pair, shape_of
from ptmq_lightning.runtime.errors import ExportError


def refuse(op: Op, why: str) -> ExportError:
    home = op.path or op.where
    return ExportError(
        f"the operation '{op.name}' ({op.key}{f' of {home!r}' if home else ''}) cannot be exported to TFLite: {why}. "
        f"Expected another form of it. Choose another target of `ptmq export --targets`, or run the artifact with "
        f"load()."
    )


def _same(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    return values[0]


def _add(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    _require_tensors(op, values)
    inputs = [value.tensor for value in values]
    return c.made(op, "ADD", inputs, channels_last(shape_of(op)), "AddOptions")


def _mul(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    _require_tensors(op, values)
    inputs = [value.tensor for value in values]
    return c.made(op, "MUL", inputs, channels_last(shape_of(op)), "MulOptions")


def _require_tensors(op: Op, values: Sequence[Value]) -> None:
    if len(values) != 2 or op.kwargs:
        raise refuse(op, "it takes a number or a constant, or has further arguments")
    if len({len(value.shape) for value in values}) != 1:
        raise refuse(op, "its tensors have different numbers of axes")


def _relu(code: str) -> Emit:
    def emit(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
        """On the grid of the plan: the kernel requantizes."""
        grid = c.grid(c.plan.at[op])
        made = c.tensor(op.name, values[0].shape, grid)
        c.writer.operator(code, [values[0].tensor], made)
        return c.clipped(Value(made, grid, values[0].shape, True), op.name)

    return emit


def _fixed(code: str, grid: Grid | None) -> Emit:
    """An operator whose output has a grid that the schema prescribes; None: that of the plan."""

    def emit(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
        own = grid or c.grid(c.plan.at[op])
        made = c.tensor(op.name, values[0].shape, own)
        c.writer.operator(code, [values[0].tensor], made)
        return c.clipped(Value(made, own, values[0].shape, grid is not None), op.name)

    return emit


def _flatten(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    """To (batch, values), in the order that torch has them: channels before space."""
    value, shape = values[0], (1, *shape_of(op)[1:])
    if len(shape) != 2:
        raise refuse(op, f"it makes {len(shape)} axes, not two")
    if len(value.shape) == 4 and max(value.shape[1:3]) > 1:
        order = np.array([0, 3, 1, 2], np.int32)
        moved = tuple(value.shape[i] for i in order)
        made = c.tensor(f"{op.name}.moved", moved, value.grid)
        c.writer.operator("TRANSPOSE", [value.tensor, c.writer.constant("order", order)], made, "TransposeOptions")
        value = replace(value, tensor=made, shape=moved)
    made = c.tensor(op.name, shape, value.grid)
    sizes = np.array([-1, shape[1]], np.int32)
    inputs = [value.tensor, c.writer.constant(f"{op.name}.shape", sizes)]
    c.writer.operator("RESHAPE", inputs, made, "ReshapeOptions", newShape=sizes.tolist())
    return replace(value, tensor=made, shape=shape)


def _mean(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    """Over height and width."""
    if "pool" not in op.key.lower() and set(axes_of(argument(op, 1, "dim"), 4)) != {2, 3}:
        raise refuse(op, "it is taken over other axes than height and width")
    if "pool" in op.key.lower() and set(shape_of(op)[2:]) != {1}:
        raise refuse(op, f"it makes {shape_of(op)[2:]} values of each channel; expected one")
    grid, shape = c.grid(c.plan.at[op]), channels_last(shape_of(op))
    made = c.tensor(op.name, shape, grid)
    inputs = [values[0].tensor, c.writer.constant("space", np.array([1, 2], np.int32))]
    c.writer.operator("MEAN", inputs, made, "ReducerOptions", keepDims=len(shape) == 4)
    return c.clipped(Value(made, grid, shape, values[0].positive), op.name)


def _windows(c: LiteRtConverter, op: Op, value: Value, fill: int | None) -> tuple[Value, dict[str, Any]]:
    """The padded input, and the options of a pooling operator."""
    size = pair(argument(op, 1, "kernel_size"))
    stride, padding = pair(argument(op, 2, "stride") or size), pair(argument(op, 3, "padding", 0))
    dilated = "max" in op.key.lower() and set(pair(argument(op, 4, "dilation", 1))) != {1}
    if dilated or argument(op, 5 if "max" in op.key.lower() else 4, "ceil_mode", False):
        raise refuse(op, "its windows are dilated, or reach beyond the image")
    scheme, pads = padding_of(padding * 2, value.shape[1:3], size, stride, (1, 1))
    value = c.padded(value, pads, op.name, fill)
    own = {"padding": scheme, "strideH": stride[0], "strideW": stride[1], "filterHeight": size[0],
           "filterWidth": size[1]}  # fmt: skip
    return value, own


def _max_pool(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    fill = None if values[0].positive else BOTTOM
    value, options = _windows(c, op, values[0], fill)
    return _pooled(c, op, "MAX_POOL_2D", value, options)


def _average_pool(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    counted = argument(op, 5, "count_include_pad", True)
    value, options = _windows(c, op, values[0], None)
    if argument(op, 6, "divisor_override"):
        raise refuse(op, "it divides by other than the size")
    if counted == (options["padding"] == SAME) and any(pair(argument(op, 3, "padding", 0))):
        raise refuse(op, "TFLite counts the padding in another way")
    return _pooled(c, op, "AVERAGE_POOL_2D", value, options)


def _pooled(c: LiteRtConverter, op: Op, code: str, value: Value, options: dict[str, Any]) -> Value:
    shape = channels_last(shape_of(op))
    made = c.tensor(op.name, shape, value.grid)
    c.writer.operator(code, [value.tensor], made, "Pool2DOptions", **options)
    return replace(value, tensor=made, shape=shape)


def _pad(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    widths = list(argument(op, 1, "padding") if op.module is not None else argument(op, 1, "pad"))
    mode = "constant" if op.module is not None else argument(op, 2, "mode", "constant")
    if len(widths) > 6 or mode != "constant" or argument(op, 3, "value", 0.0) or min(widths) < 0:
        raise refuse(op, "it pads the batch, or with other than zeros")
    widths += [0] * (6 - len(widths))
    left, right, top, bottom = widths[:4]
    return c.padded(values[0], (top, left, bottom, right), op.name, channels=widths[4:])


def _every_other(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    """x[:, :, ::s, ::s]: a maximum over windows of one value."""
    given: Any = op.args[1]
    index = [item for item in (given if isinstance(given, tuple) else (given,)) if item is not Ellipsis]
    steps = [item.step or 1 for item in index[-2:] if isinstance(item, slice)]
    rest = [item != slice(None) for item in index[:-2]]
    if len(values[0].shape) != 4 or len(steps) != 2 or any(rest) or any(i.start or i.stop for i in index[-2:]):
        raise refuse(op, "it reads other than every so many values along height and width")
    options = {"padding": VALID, "strideH": steps[0], "strideW": steps[1], "filterHeight": 1, "filterWidth": 1}
    return _pooled(c, op, "MAX_POOL_2D", values[0], options)


def _cat(c: LiteRtConverter, op: Op, values: Sequence[Value]) -> Value:
    shape = shape_of(op)
    (axis,) = axes_of(argument(op, 1, "dim", 0), len(shape))
    grid, made_shape = c.grid(c.plan.at[op]), channels_last(shape)
    parts = [value if value.grid == grid else c.requantized(value, grid, f"{op.name}.part") for value in values]
    made = c.tensor(op.name, made_shape, grid)
    place = {1: 3, 2: 1, 3: 2}[axis] if len(shape) == 4 else axis
    tensors = [part.tensor for part in parts]
    c.writer.operator("CONCATENATION", tensors, made, "ConcatenationOptions", axis=place)
    return Value(made, grid, made_shape, all(part.positive for part in parts))


OPERATIONS: dict[str, Emit] = {
    **{key: _relu("RELU") for key in ("ReLU", "relu")},
    **{key: _relu("RELU6") for key in ("ReLU6", "relu6")},
    **{key: _fixed("LOGISTIC", Grid(1 / 256, BOTTOM, BOTTOM)) for key in ("Sigmoid", "sigmoid")},
    **{key: _fixed("HARD_SWISH", None) for key in ("Hardswish", "hardswish")},
    **{key: _flatten for key in ("Flatten", "flatten", "reshape")},
    **{key: _same for key in ("Identity", "contiguous", "clone", "detach")},
    **{key: _mean for key in ("AdaptiveAvgPool2d", "adaptive_avg_pool2d", "mean")},
    **{key: _max_pool for key in ("MaxPool2d", "max_pool2d")},
    **{key: _average_pool for key in ("AvgPool2d", "avg_pool2d")},
    **{key: _pad for key in ("pad", "ZeroPad2d")},
    **{key: _cat for key in ("cat", "concat")},
    "add": _add, "mul": _mul, "getitem": _every_other,
}  # fmt: skip
