"""Averages over windows, resizing, and convolutions without a quantized weight, for ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.onnx_emit import (
    Emit,
    argument,
    axes_of,
    constant_of,
    numbers,
    pair,
    rank_of,
    refuse,
    shape_of,
    with_batch,
)
from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.export.values import Array


def _average_pool(w: Writer, op: Op, names: Sequence[str]) -> str:
    axes = len(shape_of(op)) - 2
    size = pair(argument(op, 1, "kernel_size"), axes)
    stride = pair(argument(op, 2, "stride") or size, axes)
    if argument(op, 6, "divisor_override"):
        raise refuse(op, "it divides by other than the size")
    return str(
        w.node("AveragePool", list(names[:1]), op.name, kernel_shape=size, strides=stride,
               pads=pair(argument(op, 3, "padding", 0), axes) * 2, ceil_mode=int(argument(op, 4, "ceil_mode", False)),
               count_include_pad=int(argument(op, 5, "count_include_pad", True)))
    )  # fmt: skip


def _adaptive_average(w: Writer, op: Op, names: Sequence[str]) -> str:
    """To one value, over equal windows, or, where windows differ, as products with the matrices of their shares."""
    given, made = shape_of(op.source)[2:], shape_of(op)[2:]
    if set(made) == {1}:
        return str(w.node("GlobalAveragePool", list(names[:1]), op.name))
    if given == made:
        return names[0]
    if all(n % m == 0 for n, m in zip(given, made, strict=True)):
        size = [n // m for n, m in zip(given, made, strict=True)]
        return str(w.node("AveragePool", list(names[:1]), op.name, kernel_shape=size, strides=size))
    rows = w.node("MatMul", [numbers(w, shares(given[0], made[0])), names[0]], f"{op.name}.rows")
    return str(w.node("MatMul", [rows, numbers(w, shares(given[1], made[1]).T)], op.name))


def shares(size: int, windows: int) -> Array:
    """(windows, size): what each position counts in each of torch's adaptive windows."""
    found = np.zeros((windows, size), np.float32)
    for i in range(windows):
        start, stop = i * size // windows, -(-(i + 1) * size // windows)
        found[i, start:stop] = 1 / (stop - start)
    return found


def _adaptive_max(w: Writer, op: Op, names: Sequence[str]) -> str:
    given, made = shape_of(op.source)[2:], shape_of(op)[2:]
    if any(n % m for n, m in zip(given, made, strict=True)):
        raise refuse(op, f"its windows over {given} differ in size")
    size = [n // m for n, m in zip(given, made, strict=True)]
    return str(w.node("MaxPool", list(names[:1]), op.name, kernel_shape=size, strides=size))


def _resize(w: Writer, op: Op, names: Sequence[str]) -> str:
    mode = "bilinear" if op.key == "UpsamplingBilinear2d" else argument(op, 3, "mode", "nearest")
    aligned = argument(op, 4, "align_corners", False) or op.key == "UpsamplingBilinear2d"
    given, made = shape_of(op.source)[2:], shape_of(op)[2:]
    factor = argument(op, 2, "scale_factor")
    factors = [factor] * len(given) if isinstance(factor, (int, float)) else list(factor or ())
    if any(n * f != m for n, f, m in zip(given, factors, made, strict=False)) and not aligned:
        raise refuse(op, f"the factor {factor} of {given} gives no whole sizes")
    known: dict[str, Any] = {
        "nearest": {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        "nearest-exact": {"mode": "nearest", "coordinate_transformation_mode": "half_pixel",
                          "nearest_mode": "round_prefer_ceil"},
        "bilinear": {"mode": "linear"},
        "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.75},
    }  # fmt: skip
    if mode not in known or argument(op, 6, "antialias", False):
        raise refuse(op, f"the mode {mode!r}, or antialias")
    how = known[mode]
    how.setdefault("coordinate_transformation_mode", "align_corners" if aligned else "pytorch_half_pixel")
    # Neither sizes alone nor axes: ONNX Runtime turns the axes of its convolutions and loses count of them.
    scales = [np.float32(m / n) for n, m in zip(given, made, strict=True)]
    if all(int(n * scale) == m for n, scale, m in zip(given, scales, made, strict=True)):
        return str(w.node("Resize", [names[0], "", numbers(w, [1, 1, *scales])], op.name, **how))
    front = w.node("Shape", list(names[:1]), f"{op.name}.front", start=0, end=2)
    sizes = w.node("Concat", [front, w.constant(list(made))], f"{op.name}.sizes", axis=0)
    return str(w.node("Resize", [names[0], "", "", sizes], op.name, **how))


def pads_of(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """ONNX's pads (all starts, all ends) of torch's padding, "same" and "valid" among it."""
    if padding == "valid":
        return [0] * 2 * len(kernel)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [t // 2 for t in total] + [t - t // 2 for t in total]
    return pair(padding, len(kernel)) * 2


def _conv(w: Writer, op: Op, names: Sequence[str]) -> str:
    """A convolution in float: a layer that is not quantized, or a function; its weight may be an activation."""
    axes = len(shape_of(op)) - 2
    stride, dilation = (pair(argument(op, i, key, 1), axes) for i, key in ((3, "stride"), (5, "dilation")))
    inputs = list(names)
    if op.module is not None:
        weight, bias = constant_of(op, 1, "weight"), constant_of(op, 2, "bias")
        assert weight is not None
        kernel, inputs = weight.shape[2:], [names[0], numbers(w, weight)]
        inputs += [] if bias is None else [numbers(w, bias)]
        if getattr(op.module, "padding_mode", "zeros") != "zeros":
            raise refuse(op, "it pads with other values than zero")
    else:
        kernel = shape_of(op.args[1])[2:]
    pads, groups = pads_of(argument(op, 4, "padding", 0), kernel, dilation), argument(op, 6, "groups", 1)
    if not isinstance(groups, int):
        raise refuse(op, "its groups depend on the batch")
    return str(w.node("Conv", inputs, op.name, strides=stride, pads=pads, dilations=dilation, group=groups))


def _transposed_conv(w: Writer, op: Op, names: Sequence[str]) -> str:
    m: Any = op.module
    weight, bias = constant_of(op, 1, "weight"), constant_of(op, 2, "bias")
    inputs = [names[0], numbers(w, weight), *([] if bias is None else [numbers(w, bias)])]
    return str(
        w.node("ConvTranspose", inputs, op.name, strides=pair(m.stride), pads=pair(m.padding) * 2,
               dilations=pair(m.dilation), group=m.groups, output_padding=pair(m.output_padding))
    )  # fmt: skip


def _linear(w: Writer, op: Op, names: Sequence[str]) -> str:
    """In float, as a float block has it."""
    weight, bias = constant_of(op, 1, "weight"), constant_of(op, 2, "bias")
    assert weight is not None
    made = str(w.node("MatMul", [names[0], numbers(w, weight.T)], op.name))
    return made if bias is None else str(w.node("Add", [made, numbers(w, bias)], op.name))


def _unfold(w: Writer, op: Op, names: Sequence[str]) -> str:
    """Windows as columns: a convolution with a kernel of one value for each place and channel."""
    if len(shape_of(op)) > 3:
        return _windows(w, op, names)
    size, dilation, padding, stride = (
        pair(argument(op, i, key, default))
        for i, key, default in ((1, "kernel_size", 1), (2, "dilation", 1), (3, "padding", 0), (4, "stride", 1))
    )
    channels, places = shape_of(op.source)[1], size[0] * size[1]
    kernel = np.tile(np.eye(places, dtype=np.float32).reshape(places, 1, *size), (channels, 1, 1, 1))
    columns = w.node("Conv", [names[0], numbers(w, kernel)], op.name, group=channels, strides=stride,
                     pads=padding * 2, dilations=dilation)  # fmt: skip
    return str(w.node("Reshape", [columns, w.constant([0, channels * places, -1])], op.name))


def _windows(w: Writer, op: Op, names: Sequence[str]) -> str:
    """Tensor.unfold: overlapping pieces of one axis, which come last."""
    rank, size, step = rank_of(op), int(op.args[2]), int(op.args[3])
    (axis,) = axes_of(op.args[1], rank)
    places = np.arange(shape_of(op)[axis])[:, None] * step + np.arange(size)
    x = w.node("Gather", [names[0], w.constant(places)], op.name, axis=axis)
    order = [i for i in range(rank + 1) if i != axis + 1] + [axis + 1]
    return str(w.node("Transpose", [x], op.name, perm=order))


def _shuffle(w: Writer, op: Op, names: Sequence[str]) -> str:
    """(B, C r r, H, W) -> (B, C, H r, W r) and back; ONNX's DepthToSpace in the order CRD."""
    up = op.key in ("PixelShuffle", "pixel_shuffle")
    factor = int(argument(op, 1, "upscale_factor" if up else "downscale_factor"))
    if up:
        return str(w.node("DepthToSpace", list(names[:1]), op.name, blocksize=factor, mode="CRD"))
    channels, height, width = shape_of(op.source)[1:]
    parts = w.constant([-1, channels, height // factor, factor, width // factor, factor])
    x = w.node("Transpose", [w.node("Reshape", [names[0], parts], op.name)], op.name, perm=[0, 1, 3, 5, 2, 4])
    return str(w.node("Reshape", [x, w.constant(with_batch(op))], op.name))


POOLS: dict[str, Emit] = {
    **{key: _average_pool for key in ("AvgPool2d", "avg_pool2d", "AvgPool1d", "avg_pool1d")},
    **{
        key: _adaptive_average
        for key in ("AdaptiveAvgPool2d", "adaptive_avg_pool2d", "AdaptiveAvgPool1d", "adaptive_avg_pool1d")
    },
    **{key: _adaptive_max for key in ("AdaptiveMaxPool2d", "adaptive_max_pool2d")},
    **{key: _resize for key in ("Upsample", "interpolate", "UpsamplingNearest2d", "UpsamplingBilinear2d")},
    **{key: _conv for key in ("Conv2d", "Conv1d", "conv1d", "conv2d")},
    **{key: _unfold for key in ("Unfold", "unfold")},
    **{key: _shuffle for key in ("PixelShuffle", "pixel_shuffle", "PixelUnshuffle", "pixel_unshuffle")},
    "ConvTranspose2d": _transposed_conv,
    "Linear": _linear,
}
