"""Nodes of the ONNX graph of floats as operations of an ML program: the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptmq_lightning.export.values import Array
from ptmq_lightning.runtime.errors import ExportError

SHIFT = 128  # from uint8 to int8


@dataclass(frozen=True)
class Emitter:
    """What a node is made with: the builder, the node's name, attributes and number of outputs."""

    mb: Any
    name: str
    attributes: Mapping[str, Any]
    outputs: int

    def __call__(self, kind: str, **values: Any) -> Any:
        """An operation of the program; floats among the values become float16."""
        return getattr(self.mb, kind)(name=self.name, **{key: half(value) for key, value in values.items()})


def half(value: Any) -> Any:
    """Floats as float16, all else as it is."""
    if isinstance(value, float) or (isinstance(value, np.ndarray) and value.dtype.kind == "f"):
        return np.asarray(value, dtype=np.float16) if np.ndim(value) else np.float16(value)
    return value


def _numbers(value: Any) -> list[int]:
    return [int(v) for v in np.asarray(value).ravel()]


def _quantize(e: Emitter, x: Any, scale: Array, zero: Array) -> Any:
    point = np.int8(int(zero) - SHIFT)
    return e("quantize", input=x, scale=float(scale), zero_point=point, output_dtype="int8")


def _dequantize(e: Emitter, x: Any, scale: Array, zero: Array) -> Any:
    return e("dequantize", input=x, scale=float(scale), zero_point=np.int8(int(zero) - SHIFT))


def _conv(e: Emitter, x: Any, weight: Any, bias: Any = None) -> Any:
    a = e.attributes
    top, left, bottom, right = a["pads"]
    own = {} if bias is None else {"bias": bias}
    return e("conv", x=x, weight=weight, strides=list(a["strides"]), pad_type="custom", pad=[top, bottom, left, right],
             dilations=list(a["dilations"]), groups=int(a["group"]), **own)  # fmt: skip


def _gemm(e: Emitter, x: Any, weight: Any, bias: Any = None) -> Any:
    return e("linear", x=x, weight=weight, **({} if bias is None else {"bias": bias}))


def _clip(e: Emitter, x: Any, low: Any = None, high: Any = None) -> Any:
    limit = float(np.finfo(np.float16).max)
    return e("clip", x=x, alpha=-limit if low is None else float(low), beta=limit if high is None else float(high))


def _binary(kind: str, on_sizes: Callable[[Array, Array], Array]) -> Any:
    def emit(e: Emitter, x: Any, y: Any) -> Any:
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return on_sizes(x, y)
        return e(kind, x=x, y=y)

    return emit


def _pool(kind: str) -> Any:
    def emit(e: Emitter, x: Any) -> Any:
        a = e.attributes
        top, left, bottom, right = a.get("pads", [0] * 4)
        if a.get("ceil_mode") or set(a.get("dilations", [1])) != {1}:
            raise ExportError(
                f"the pooling '{e.name}' has windows that are dilated or reach beyond the image; expected others in "
                f"Core ML. Choose another target of `ptmq export --targets`."
            )
        own = {} if kind == "max_pool" else {"exclude_padding_from_average": not a.get("count_include_pad", 0)}
        return e(kind, x=x, kernel_sizes=list(a["kernel_shape"]), strides=list(a["strides"]), pad_type="custom",
                 pad=[top, bottom, left, right], **own)  # fmt: skip

    return emit


def _reshape(e: Emitter, x: Any, shape: Array) -> Any:
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(_numbers(shape))]
    return x.reshape(sizes) if isinstance(x, np.ndarray) else e("reshape", x=x, shape=sizes)


def _slice(e: Emitter, x: Any, starts: Array, ends: Array, axes: Array, steps: Any = (1,)) -> Any:
    begin, end, stride, rank = [0] * x.rank, [0] * x.rank, [1] * x.rank, x.rank
    open_begin, open_end = [True] * rank, [True] * rank
    many = _numbers(steps) * (len(_numbers(axes)) if len(_numbers(steps)) == 1 else 1)
    for at, stop, axis, step in zip(_numbers(starts), _numbers(ends), _numbers(axes), many, strict=True):
        first, last, each = slice(at, stop, step).indices(x.shape[axis])
        begin[axis], stride[axis], open_begin[axis] = first, each, False
        end[axis], open_end[axis] = last, last < 0 or last >= x.shape[axis]
    return e("slice_by_index", x=x, begin=begin, end=end, stride=stride, begin_mask=open_begin, end_mask=open_end)


def _split(e: Emitter, x: Any, sizes: Any = None) -> Any:
    axis = int(e.attributes["axis"])
    many = _numbers(sizes) if sizes is not None else [x.shape[axis] // e.outputs] * e.outputs
    made = e("split", x=x, split_sizes=many, axis=axis)
    return list(made) if isinstance(made, (list, tuple)) else [made]


def _concat(e: Emitter, *parts: Any) -> Any:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts, int(e.attributes["axis"]))
    values = [half(part) for part in parts]
    return e("concat", values=values, axis=int(e.attributes["axis"]))


def _expand(e: Emitter, x: Any, shape: Array) -> Any:
    if isinstance(x, np.ndarray):
        return np.broadcast_to(x, np.broadcast_shapes(x.shape, _numbers(shape)))
    reps = [want // size for want, size in zip(np.broadcast_shapes(x.shape, _numbers(shape)), x.shape, strict=True)]
    return e("tile", x=x, reps=reps) if set(reps) != {1} else x


def _tile(e: Emitter, x: Any, reps: Array) -> Any:
    return np.tile(x, _numbers(reps)) if isinstance(x, np.ndarray) else e("tile", x=x, reps=_numbers(reps))


def _pad(e: Emitter, x: Any, pads: Array, value: Any = 0.0) -> Any:
    widths, mode = _numbers(pads), e.attributes.get("mode", b"constant").decode()
    rank = len(widths) // 2
    pairs = [width for axis in range(rank) for width in (widths[axis], widths[rank + axis])]
    beyond = mode != "constant" and any(pairs[: 2 * (rank - 2)])
    if mode not in ("constant", "reflect", "edge") or min(widths) < 0 or beyond:
        raise ExportError(
            f"'{e.name}' pads in a way that Core ML has not (mode {mode}); expected positive widths, and other modes "
            f"than constant along height and width alone. Choose another target of `ptmq export --targets`."
        )
    how = {"edge": "replicate"}.get(mode, mode)
    return e("pad", x=x, pad=pairs, mode=how, constant_val=float(value))


def _squeeze(e: Emitter, x: Any, axes: Array) -> Any:
    return np.squeeze(x, tuple(_numbers(axes))) if isinstance(x, np.ndarray) else e("squeeze", x=x, axes=_numbers(axes))


def _layer_norm(e: Emitter, x: Any, scale: Any, shift: Any = None) -> Any:
    axes = list(range(int(e.attributes["axis"]), 0))
    own = {} if shift is None else {"beta": shift}
    return e("layer_norm", x=x, axes=axes, gamma=scale, epsilon=float(e.attributes["epsilon"]), **own)


def _gelu(e: Emitter, x: Any) -> Any:
    tanh = e.attributes.get("approximate", b"none") == b"tanh"
    return e("gelu", x=x, mode="TANH_APPROXIMATION" if tanh else "EXACT")


def _hard_swish(e: Emitter, x: Any) -> Any:
    gate = e.mb.sigmoid_hard(x=x, alpha=half(1 / 6), beta=half(0.5), name=f"{e.name}.gate")
    return e("mul", x=x, y=gate)


def _hard_sigmoid(e: Emitter, x: Any) -> Any:
    return e("sigmoid_hard", x=x, alpha=float(e.attributes["alpha"]), beta=float(e.attributes["beta"]))


def _mean(e: Emitter, x: Any, axes: Array) -> Any:
    return e("reduce_mean", x=x, axes=_numbers(axes), keep_dims=bool(e.attributes["keepdims"]))


def _shape(e: Emitter, x: Any) -> Array:
    return np.array(x.shape[e.attributes.get("start", 0) : e.attributes.get("end", len(x.shape))], np.int64)


def _same(e: Emitter, x: Any) -> Any:
    return x


def _one(kind: str) -> Any:
    return lambda e, x: e(kind, x=x)


NODES: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "Conv": _conv, "Gemm": _gemm, "Clip": _clip,
    "Add": _binary("add", np.add), "Sub": _binary("sub", np.subtract), "Mul": _binary("mul", np.multiply),
    "Div": _binary("real_div", np.floor_divide), "Max": _binary("maximum", np.maximum),
    "Min": _binary("minimum", np.minimum), "MaxPool": _pool("max_pool"), "AveragePool": _pool("avg_pool"),
    "GlobalAveragePool": lambda e, x: e("reduce_mean", x=x, axes=[2, 3], keep_dims=True), "ReduceMean": _mean,
    "Reshape": _reshape, "Transpose": lambda e, x: e("transpose", x=x, perm=list(e.attributes["perm"])),
    "Slice": _slice, "Split": _split, "Concat": _concat, "Expand": _expand, "Tile": _tile, "Pad": _pad,
    "Unsqueeze": lambda e, x, axes: e("expand_dims", x=x, axes=_numbers(axes)), "Squeeze": _squeeze,
    "LayerNormalization": _layer_norm, "Gelu": _gelu, "HardSwish": _hard_swish, "HardSigmoid": _hard_sigmoid,
    "Softmax": lambda e, x: e("softmax", x=x, axis=int(e.attributes["axis"])), "Shape": _shape, "Identity": _same,
    "MatMul": lambda e, x, y: e("matmul", x=x, y=y), "Relu": _one("relu"), "Sigmoid": _one("sigmoid"),
    "Tanh": _one("tanh"), "Gather": lambda e, x, i: e("gather", x=x, indices=i.astype(np.int32),
                                                      axis=int(e.attributes["axis"])),
}  # fmt: skip
# Operations of `artifact.tables` whose ONNX form consists of the nodes above.
OPERATIONS = frozenset(
    {
        "add", "sub", "mul", "truediv", "div", "maximum", "minimum", "ReLU", "relu", "ReLU6", "relu6", "Hardtanh",
        "hardtanh", "clamp", "clip", "clamp_min", "clamp_max", "GELU", "gelu", "SiLU", "silu", "GLU", "glu", "Sigmoid",
        "sigmoid", "Tanh", "tanh", "Hardswish", "hardswish", "Hardsigmoid", "hardsigmoid", "Softmax", "softmax",
        "LayerNorm", "layer_norm", "matmul", "bmm", "mean", "MaxPool2d", "max_pool2d", "AvgPool2d", "avg_pool2d",
        "AdaptiveAvgPool2d", "adaptive_avg_pool2d", "reshape", "flatten", "Flatten", "unflatten", "Unflatten",
        "transpose", "swapaxes", "swapdims", "t", "permute", "movedim", "contiguous", "Identity", "clone", "detach",
        "unsqueeze", "squeeze", "getitem", "select", "narrow", "index_select", "cat", "concat", "stack", "split",
        "chunk", "unbind", "expand", "repeat", "tile", "size", "pad", "ZeroPad2d", "ReflectionPad2d",
        "ReplicationPad2d", "to", "float", "type_as",
    }
)  # fmt: skip
