"""Operations without quantized weights, from the names of `artifact.tables` to ONNX: value by value, and the table.

Those that only move values are in `onnx_moves`, windows and plain convolutions in `onnx_pools`, norms in `onnx_norms`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.onnx_emit import (
    Emit,
    argument,
    axes_of,
    constant_of,
    numbers,
    rank_of,
    refuse,
    shape_of,
    with_batch,
)
from ptmq_lightning.export.onnx_moves import same
from ptmq_lightning.export.onnx_norms import NORMS
from ptmq_lightning.export.onnx_pools import POOLS
from ptmq_lightning.export.onnx_writer import Writer


def _simple(name: str, **attributes: Any) -> Emit:
    return lambda w, op, names: str(w.node(name, list(names), op.name, **attributes))


def _one(name: str, **attributes: Any) -> Emit:
    return lambda w, op, names: str(w.node(name, list(names[:1]), op.name, **attributes))


def _with(name: str, to: str, key: str, default: float) -> Emit:
    """An activation function with a number of its own: `key` in torch, `to` in ONNX."""

    def emit(w: Writer, op: Op, names: Sequence[str]) -> str:
        own: dict[str, Any] = {to: float(argument(op, 1, key, default))}
        return str(w.node(name, list(names[:1]), op.name, **own))

    return emit


def _bounded(w: Writer, x: str, op: Op, low: Any, high: Any) -> str:
    ends = ["" if end is None else numbers(w, float(end)) for end in (low, high)]
    return str(w.node("Clip", [x, *(ends if ends[1] else ends[:1])], op.name))


def _clamp(w: Writer, op: Op, names: Sequence[str]) -> str:
    low, high = argument(op, 1, "min"), argument(op, 2, "max")
    if op.key == "clamp_max":
        low, high = None, argument(op, 1, "max")
    if any(isinstance(end, Op) for end in (low, high)):
        raise refuse(op, "its bounds are tensors")
    return _bounded(w, names[0], op, low, high)


def _hardtanh(w: Writer, op: Op, names: Sequence[str]) -> str:
    return _bounded(w, names[0], op, argument(op, 1, "min_val", -1.0), argument(op, 2, "max_val", 1.0))


def _gelu(w: Writer, op: Op, names: Sequence[str]) -> str:
    how = getattr(op.module, "approximate", None) or op.kwargs.get("approximate", "none")
    return str(w.node("Gelu", list(names[:1]), op.name, approximate=how))


def _silu(w: Writer, op: Op, names: Sequence[str]) -> str:
    return str(w.node("Mul", [names[0], w.node("Sigmoid", list(names[:1]), f"{op.name}.sigmoid")], op.name))


def _glu(w: Writer, op: Op, names: Sequence[str]) -> str:
    axis = axes_of(argument(op, 1, "dim", -1), rank_of(op))[0]
    one, two = w.node("Split", list(names[:1]), f"{op.name}.halves", outputs=2, axis=axis, num_outputs=2)
    return str(w.node("Mul", [one, w.node("Sigmoid", [two], f"{op.name}.sigmoid")], op.name))


def _prelu(w: Writer, op: Op, names: Sequence[str]) -> str:
    slope = constant_of(op, 1, "weight")
    assert slope is not None
    shape = (-1, *[1] * (rank_of(op) - 2)) if slope.size > 1 else (1,)
    return str(w.node("PRelu", [names[0], numbers(w, slope.reshape(shape))], op.name))


def _softplus(w: Writer, op: Op, names: Sequence[str]) -> str:
    beta = float(argument(op, 1, "beta", 1.0))
    x = names[0] if beta == 1 else w.node("Mul", [names[0], numbers(w, beta)], f"{op.name}.scaled")
    x = w.node("Softplus", [x], op.name)
    return str(x if beta == 1 else w.node("Div", [x, numbers(w, beta)], op.name))


def _log_sigmoid(w: Writer, op: Op, names: Sequence[str]) -> str:
    return str(w.node("Log", [w.node("Sigmoid", list(names[:1]), f"{op.name}.sigmoid")], op.name))


def _rsqrt(w: Writer, op: Op, names: Sequence[str]) -> str:
    return str(w.node("Reciprocal", [w.node("Sqrt", list(names[:1]), f"{op.name}.root")], op.name))


def _square(w: Writer, op: Op, names: Sequence[str]) -> str:
    return str(w.node("Mul", [names[0], names[0]], op.name))


def _logarithm(base: float) -> Emit:
    return lambda w, op, names: str(
        w.node("Mul", [w.node("Log", list(names[:1]), op.name), numbers(w, 1 / math.log(base))], op.name)
    )


def _reduce(kind: str) -> Emit:
    def emit(w: Writer, op: Op, names: Sequence[str]) -> str:
        axes = axes_of(argument(op, 1, "dim"), rank_of(op))
        keep = int(bool(argument(op, 2, "keepdim", False)))
        return str(w.node(kind, [names[0], w.constant(axes)], op.name, keepdims=keep))

    return emit


def _extreme(kind: str) -> Emit:
    """max and min: of two tensors, or along an axis (values alone: their places are not exported)."""

    def emit(w: Writer, op: Op, names: Sequence[str]) -> Any:
        if len(names) == 2:
            return w.node(kind, list(names), op.name)
        axis = argument(op, 1, "dim")
        made = w.node(f"Reduce{kind}", [names[0], w.constant(axes_of(axis, rank_of(op)))], op.name,
                      keepdims=int(bool(argument(op, 2, "keepdim", False))))  # fmt: skip
        return made if axis is None else [made]

    return emit


def _spread(w: Writer, op: Op, names: Sequence[str]) -> str:
    """var and std along axes; torch divides by one less than the number of values unless told otherwise."""
    axes = axes_of(argument(op, 1, "dim"), rank_of(op))
    less = op.kwargs.get("correction", int(bool(argument(op, 2, "unbiased", True))))
    count = math.prod(shape_of(op.source)[axis] for axis in axes)
    if 0 in axes:
        raise refuse(op, "it is taken over the batch")
    mean = w.node("ReduceMean", [names[0], w.constant(axes)], f"{op.name}.mean", keepdims=1)
    apart = w.node("Sub", [names[0], mean], f"{op.name}.apart")
    square = w.node("Mul", [apart, apart], f"{op.name}.square")
    keep = int(bool(argument(op, 3, "keepdim", False)))
    made = w.node("ReduceMean", [square, w.constant(axes)], op.name, keepdims=keep)
    if less:
        made = w.node("Mul", [made, numbers(w, count / (count - less))], op.name)
    return str(w.node("Sqrt", [made], op.name) if op.key == "std" else made)


def _addcmul(w: Writer, op: Op, names: Sequence[str]) -> str:
    kind = "Mul" if op.key == "addcmul" else "Div"
    made = w.node(kind, list(names[1:3]), f"{op.name}.product")
    if (value := op.kwargs.get("value", 1)) != 1:
        made = w.node("Mul", [made, numbers(w, value)], f"{op.name}.product")
    return str(w.node("Add", [names[0], made], op.name))


def _added_product(w: Writer, op: Op, names: Sequence[str]) -> str:
    """baddbmm and addmm: beta * input + alpha * a b."""
    parts = [names[0], w.node("MatMul", list(names[1:3]), f"{op.name}.product")]
    for i, key in enumerate(("beta", "alpha")):
        if (factor := op.kwargs.get(key, 1)) != 1:
            parts[i] = w.node("Mul", [parts[i], numbers(w, factor)], f"{op.name}.{key}")
    return str(w.node("Add", parts, op.name))


def _einsum(w: Writer, op: Op, names: Sequence[str]) -> str:
    if not isinstance(op.args[0], str):
        raise refuse(op, "its equation is no text")
    return str(w.node("Einsum", list(names), op.name, equation=op.args[0].replace(" ", "")))


def _stack(w: Writer, op: Op, names: Sequence[str]) -> str:
    (axis,) = axes_of(argument(op, 1, "dim", 0), len(shape_of(op)))
    parts = [w.node("Unsqueeze", [name, w.constant([axis])], f"{op.name}.part") for name in names]
    return str(w.node("Concat", parts, op.name, axis=axis))


def _cat(w: Writer, op: Op, names: Sequence[str]) -> str:
    (axis,) = axes_of(argument(op, 1, "dim", 0), len(shape_of(op)))
    return str(w.node("Concat", list(names), op.name, axis=axis))


def _expand_as(w: Writer, op: Op, names: Sequence[str]) -> str:
    return str(w.node("Expand", [names[0], w.node("Shape", [names[1]], f"{op.name}.shape")], op.name))


def _repeat_interleave(w: Writer, op: Op, names: Sequence[str]) -> str:
    times, axis = argument(op, 1, "repeats"), argument(op, 2, "dim")
    if not isinstance(times, int) or axis is None:
        raise refuse(op, "it repeats by other than a number along an axis")
    (axis,) = axes_of(axis, rank_of(op))
    x = w.node("Unsqueeze", [names[0], w.constant([axis + 1])], op.name)
    counts = [1] * (rank_of(op) + 1)
    counts[axis + 1] = times
    x = w.node("Tile", [x, w.constant(counts)], op.name)
    return str(w.node("Reshape", [x, w.constant(with_batch(op))], op.name))


def _topk(w: Writer, op: Op, names: Sequence[str]) -> list[str]:
    count, (axis,) = int(argument(op, 1, "k")), axes_of(argument(op, 2, "dim", -1), rank_of(op))
    largest = int(bool(argument(op, 3, "largest", True)))
    made = w.node("TopK", [names[0], w.constant([count])], op.name, outputs=2, axis=axis, largest=largest)
    return list(made)


def _cast(w: Writer, op: Op, names: Sequence[str]) -> str:
    if any(str(a).startswith("torch.") and str(a) != "torch.float32" for a in (*op.args[1:], *op.kwargs.values())):
        raise refuse(op, "it changes the type")
    return names[0]


def pieces(w: Writer, op: Op, names: Sequence[str]) -> list[str]:
    """split and chunk: pieces of given sizes, the last one what is left."""
    (axis,) = axes_of(argument(op, 2, "dim", 0), rank_of(op))
    size = shape_of(op.source)[axis]
    given = next((op.kwargs[k] for k in ("split_size", "split_size_or_sections", "chunks") if k in op.kwargs), None)
    given = op.args[1] if given is None else given
    if axis == 0:
        raise refuse(op, "it divides the batch")
    if op.key == "chunk":
        given = -(-size // int(given))
    sizes = [min(given, size - at) for at in range(0, size, given)] if isinstance(given, int) else list(given)
    return list(w.node("Split", [names[0], w.constant(sizes)], op.name, outputs=len(sizes), axis=axis))


def _unbind(w: Writer, op: Op, names: Sequence[str]) -> list[str]:
    (axis,) = axes_of(argument(op, 1, "dim", 0), rank_of(op))
    count = shape_of(op.source)[axis]
    parts = w.node("Split", list(names[:1]), op.name, outputs=count, axis=axis, num_outputs=count)
    return [w.node("Squeeze", [part, w.constant([axis])], f"{op.name}.squeezed") for part in parts]


FLOATS: dict[str, Emit] = {
    **NORMS,
    **POOLS,
    **{key: _one("Relu") for key in ("ReLU", "relu")},
    **{key: lambda w, op, names: _bounded(w, names[0], op, 0.0, 6.0) for key in ("ReLU6", "relu6")},
    **{key: _gelu for key in ("GELU", "gelu")},
    **{key: _silu for key in ("SiLU", "silu")},
    **{key: _glu for key in ("GLU", "glu")},
    **{key: _one("Sigmoid") for key in ("Sigmoid", "sigmoid")},
    **{key: _one("Tanh") for key in ("Tanh", "tanh")},
    **{key: _one("Mish") for key in ("Mish", "mish")},
    **{key: _one("Selu") for key in ("SELU", "selu")},
    **{key: _one("Softsign") for key in ("Softsign", "softsign")},
    **{key: _one("HardSwish") for key in ("Hardswish", "hardswish")},
    **{key: _one("HardSigmoid", alpha=1 / 6, beta=0.5) for key in ("Hardsigmoid", "hardsigmoid")},
    **{key: _with("LeakyRelu", "alpha", "negative_slope", 0.01) for key in ("LeakyReLU", "leaky_relu")},
    **{key: _with("Elu", "alpha", "alpha", 1.0) for key in ("ELU", "elu")},
    **{key: _with("Celu", "alpha", "alpha", 1.0) for key in ("CELU", "celu")},
    **{key: _hardtanh for key in ("Hardtanh", "hardtanh")},
    **{key: _prelu for key in ("PReLU", "prelu")},
    **{key: _softplus for key in ("Softplus", "softplus")},
    **{key: _log_sigmoid for key in ("LogSigmoid", "logsigmoid")},
    **{key: _clamp for key in ("clamp", "clip", "clamp_min", "clamp_max")},
    **{key: _simple(name) for key, name in (("matmul", "MatMul"), ("bmm", "MatMul"), ("maximum", "Max"),
                                            ("minimum", "Min"))},
    **{key: _one(key.capitalize()) for key in ("exp", "sqrt", "neg", "abs", "log", "erf", "cos", "sin", "floor", "ceil",
                                               "round", "sign", "reciprocal")},
    **{key: _reduce(name) for key, name in (("mean", "ReduceMean"), ("sum", "ReduceSum"), ("amax", "ReduceMax"),
                                            ("amin", "ReduceMin"), ("logsumexp", "ReduceLogSumExp"))},
    **{key: _addcmul for key in ("addcmul", "addcdiv")},
    **{key: _added_product for key in ("baddbmm", "addmm")},
    **{key: _spread for key in ("var", "std")},
    **{key: pieces for key in ("split", "chunk")},
    **{key: _cat for key in ("cat", "concat")},
    **{key: _cast for key in ("to", "float")},
    "rsqrt": _rsqrt, "square": _square, "log2": _logarithm(2.0), "max": _extreme("Max"), "min": _extreme("Min"),
    "einsum": _einsum, "stack": _stack, "expand_as": _expand_as, "type_as": same, "topk": _topk, "unbind": _unbind,
    "repeat_interleave": _repeat_interleave,
}  # fmt: skip
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "truediv": "Div", "div": "Div", "pow": "Pow"}
