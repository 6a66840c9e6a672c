"""Operations without weights of their own, from the names of `artifact.graph` to ONNX.

An emitter takes (writer, operation, name of its first tensor, the other arguments as they are) and gives a name.
Those of MOVES only move values or take the largest of some: they work on integers too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.runtime.errors import ExportError

Emit = Callable[[Writer, Op, str], str]


def shape_of(op: Op | None) -> tuple[int, ...]:
    """Shape at a batch of two."""
    assert op is not None and op.shape is not None
    return op.shape


def argument(op: Op, position: int, name: str, default: Any) -> Any:
    return op.args[position] if len(op.args) > position else op.kwargs.get(name, default)


def pair(value: Any) -> list[int]:
    return [int(v) for v in value] if isinstance(value, (tuple, list)) else [int(value)] * 2


def refuse(op: Op, why: str = "") -> ExportError:
    what = f" of '{op.path}'" if op.path else ""
    return ExportError(
        f"the operation '{op.name}' ({op.key}{what}) cannot be exported{f': {why}' if why else ''}; expected one of "
        f"the tables in ptmq_lightning/export/onnx_ops.py. Add it there, or run the artifact with load()."
    )


def _reshape(w: Writer, op: Op, x: str) -> str:
    """reshape, flatten: the shape at a batch of two tells the sizes, the batch is what is left."""
    shape = list(shape_of(op))
    if op.key == "reshape":
        asked = op.args[1] if isinstance(op.args[1], (tuple, list)) else op.args[1:]
        sizes = [size if isinstance(size, int) else -1 for size in asked]
    else:
        sizes = [-1, *shape[1:]]
    if sizes.count(-1) > 1:
        raise refuse(op, "it leaves more than one size open")
    return str(w.node("Reshape", [x, w.constant(sizes)], op.name))


def _permute(w: Writer, op: Op, x: str) -> str:
    rank = len(shape_of(op))
    axes = op.args[1] if isinstance(op.args[1], (tuple, list)) else op.args[1:]
    return str(w.node("Transpose", [x], op.name, perm=[int(a) % rank for a in axes]))


def _transpose(w: Writer, op: Op, x: str) -> str:
    rank = len(shape_of(op))
    order = list(range(rank))
    one, two = (int(a) % rank for a in op.args[1:3])
    order[one], order[two] = order[two], order[one]
    return str(w.node("Transpose", [x], op.name, perm=order))


def _unsqueeze(w: Writer, op: Op, x: str) -> str:
    axis = int(op.args[1]) % len(shape_of(op))
    return str(w.node("Unsqueeze", [x, w.constant([axis])], op.name))


def _same(w: Writer, op: Op, x: str) -> str:
    return x


def _getitem(w: Writer, op: Op, x: str) -> str:
    """Slices with a step, single indices and None of a tensor."""
    index = op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
    sliced: list[tuple[int, int, int, int]] = []
    gone: list[int] = []
    for axis, item in enumerate(index):
        if isinstance(item, int):
            sliced.append((item, item + 1 if item != -1 else 2**62, axis, 1))
            gone.append(axis)
        elif isinstance(item, slice) and all(isinstance(v, (int, type(None))) for v in (item.start, item.stop)):
            if item != slice(None):
                sliced.append((item.start or 0, 2**62 if item.stop is None else item.stop, axis, item.step or 1))
        else:
            raise refuse(op, f"the index {item!r}")
    if sliced:
        starts, stops, axes, steps = (w.constant(column) for column in zip(*sliced, strict=True))
        x = w.node("Slice", [x, starts, stops, axes, steps], op.name)
    return str(w.node("Squeeze", [x, w.constant(gone)], op.name)) if gone else x


def _max_pool(w: Writer, op: Op, x: str) -> str:
    m = op.module
    size = pair(getattr(m, "kernel_size", None) or argument(op, 1, "kernel_size", None))
    stride = pair(getattr(m, "stride", None) or argument(op, 2, "stride", None) or size)
    padding = pair(getattr(m, "padding", None) or argument(op, 3, "padding", 0))
    dilation = pair(getattr(m, "dilation", None) or argument(op, 4, "dilation", 1))
    ceil = bool(getattr(m, "ceil_mode", False) or argument(op, 5, "ceil_mode", False))
    return str(
        w.node("MaxPool", [x], op.name, kernel_shape=size, strides=stride, pads=padding * 2, dilations=dilation,
               ceil_mode=int(ceil))
    )  # fmt: skip


def _roll(w: Writer, op: Op, x: str) -> str:
    """A cyclic shift along each axis: the tail in front of the head."""
    shifts, axes = argument(op, 1, "shifts", None), argument(op, 2, "dims", None)
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
    "reshape": _reshape, "flatten": _reshape, "Flatten": _reshape, "permute": _permute, "transpose": _transpose,
    "unsqueeze": _unsqueeze, "contiguous": _same, "Identity": _same, "getitem": _getitem, "MaxPool2d": _max_pool,
    "max_pool2d": _max_pool, "roll": _roll,
}  # fmt: skip


def pad(w: Writer, op: Op, x: str, value: str) -> str:
    """F.pad with a constant; value: the name of what to pad with, in the type of x."""
    widths = list(op.args[1])
    if argument(op, 2, "mode", "constant") != "constant" or argument(op, 3, "value", None) not in (None, 0, 0.0):
        raise refuse(op, "it pads with other values than zero")
    rank = len(shape_of(op))
    before, after = [0] * rank, [0] * rank
    for i in range(len(widths) // 2):
        before[rank - 1 - i], after[rank - 1 - i] = widths[2 * i], widths[2 * i + 1]
    return str(w.node("Pad", [x, w.constant(before + after), value], op.name))


def _simple(name: str, **attributes: Any) -> Emit:
    return lambda w, op, x: str(w.node(name, [x], op.name, **attributes))


def _clip(low: float, high: float) -> Emit:
    def emit(w: Writer, op: Op, x: str) -> str:
        return str(w.node("Clip", [x, w.constant(low, np.float32), w.constant(high, np.float32)], op.name))

    return emit


def _gelu(w: Writer, op: Op, x: str) -> str:
    how = getattr(op.module, "approximate", None) or op.kwargs.get("approximate", "none")
    return str(w.node("Gelu", [x], op.name, approximate=how))


def _silu(w: Writer, op: Op, x: str) -> str:
    return str(w.node("Mul", [x, w.node("Sigmoid", [x], f"{op.name}.sigmoid")], op.name))


def _softmax(w: Writer, op: Op, x: str) -> str:
    axis = getattr(op.module, "dim", None) if op.module is not None else argument(op, 1, "dim", -1)
    return str(w.node("Softmax", [x], op.name, axis=int(axis if axis is not None else -1)))


def _layer_norm(w: Writer, op: Op, x: str) -> str:
    m: Any = op.module
    size = m.normalized_shape
    scale = np.ones(size, np.float32) if m.weight is None else m.weight.detach().cpu().numpy()
    inputs = [x, w.constant(scale, np.float32)]
    if m.bias is not None:
        inputs.append(w.constant(m.bias.detach().cpu().numpy(), np.float32))
    return str(w.node("LayerNormalization", inputs, op.name, axis=-len(size), epsilon=m.eps))


def _batch_norm(w: Writer, op: Op, x: str) -> str:
    m: Any = op.module
    ones = np.ones(m.num_features, np.float32)
    own = [ones if m.weight is None else m.weight, ones * 0 if m.bias is None else m.bias]
    values = [
        v if isinstance(v, np.ndarray) else v.detach().cpu().numpy() for v in (*own, m.running_mean, m.running_var)
    ]
    names = [w.constant(v, np.float32) for v in values]
    return str(w.node("BatchNormalization", [x, *names], op.name, epsilon=m.eps))


def _average_pool(w: Writer, op: Op, x: str) -> str:
    if op.module is not None and hasattr(op.module, "output_size"):
        if shape_of(op)[2:] == (1, 1):
            return str(w.node("GlobalAveragePool", [x], op.name))
        if shape_of(op) == shape_of(op.source):
            return x
        raise refuse(op, "it averages to more than one value")
    m: Any = op.module
    if m.divisor_override:
        raise refuse(op, "it divides by other than the size")
    return str(
        w.node("AveragePool", [x], op.name, kernel_shape=pair(m.kernel_size), strides=pair(m.stride),
               pads=pair(m.padding) * 2, ceil_mode=int(m.ceil_mode), count_include_pad=int(m.count_include_pad))
    )  # fmt: skip


def _mean(w: Writer, op: Op, x: str) -> str:
    axes = argument(op, 1, "dim", None)
    axes = [axes] if isinstance(axes, int) else list(axes)
    keep = int(bool(argument(op, 2, "keepdim", False)))
    return str(w.node("ReduceMean", [x, w.constant(axes)], op.name, keepdims=keep))


FLOATS: dict[str, Emit] = {
    **{key: _simple("Relu") for key in ("ReLU", "relu")},
    **{key: _clip(0.0, 6.0) for key in ("ReLU6", "relu6")},
    **{key: _gelu for key in ("GELU", "gelu")},
    **{key: _silu for key in ("SiLU", "silu")},
    **{key: _simple("Sigmoid") for key in ("Sigmoid", "sigmoid")},
    **{key: _simple("Tanh") for key in ("Tanh", "tanh")},
    **{key: _simple("HardSwish") for key in ("Hardswish", "hardswish")},
    **{key: _simple("HardSigmoid", alpha=1 / 6, beta=0.5) for key in ("Hardsigmoid", "hardsigmoid")},
    **{key: _softmax for key in ("Softmax", "softmax")},
    "exp": _simple("Exp"), "sqrt": _simple("Sqrt"), "neg": _simple("Neg"), "abs": _simple("Abs"),
    "LayerNorm": _layer_norm, "BatchNorm2d": _batch_norm, "mean": _mean,
    "AdaptiveAvgPool2d": _average_pool, "AvgPool2d": _average_pool,
}  # fmt: skip
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "truediv": "Div", "div": "Div", "pow": "Pow"}


def names_of(values: Sequence[Any]) -> list[Any]:
    """Flat list of operations in an argument."""
    return [item for value in values for item in (value if isinstance(value, (tuple, list)) else [value])]
