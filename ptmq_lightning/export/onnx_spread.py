"""The attributes of ONNX's Conv, and a transposed convolution as a Conv over its input with zeros between the values.

Runtimes have integer kernels for convolutions, and ONNX Runtime has none for transposed ones. The price is products
with zeros: stride times stride as many products in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.onnx_emit import shape_of
from ptmq_lightning.export.onnx_pools import pads_of
from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.runtime.layers import QuantConv2d, QuantConvTranspose2d


def attributes_of(conv: QuantConv2d | QuantConvTranspose2d, kernel: Sequence[int]) -> dict[str, Any]:
    """Of the Conv, with the spread input where the layer is transposed."""
    if isinstance(conv, QuantConvTranspose2d):
        strides, pads = [1, 1], [max(pad, 0) for pad in spread_pads(conv, kernel)]
    else:
        strides, pads = list(conv.stride), pads_of(conv.padding, kernel, conv.dilation)
    return {"strides": strides, "pads": pads, "dilations": list(conv.dilation), "group": conv.groups}


def spread_pads(conv: QuantConvTranspose2d, kernel: Sequence[int]) -> list[int]:
    """ONNX's pads (all starts, all ends) of the convolution; a negative one takes away."""
    starts = [d * (k - 1) - p for d, k, p in zip(conv.dilation, kernel, conv.padding, strict=True)]
    ends = [at + more - (s - 1) for at, more, s in zip(starts, conv.output_padding, conv.stride, strict=True)]
    return starts + ends


def spread(w: Writer, op: Op, x: str, zero: str, stride: Sequence[int], pads: Sequence[int]) -> str:
    """x (B, C, H, W) -> (B, C, H * stride, W * stride): stride - 1 zeros behind every value along both axes, and less
    at the ends where pads are negative. zero: the name of what a zero is, in the type of x."""
    channels, height, width = shape_of(op.source)[1:]
    sizes = [height * stride[0], width * stride[1]]
    if max(stride) > 1:
        x = w.node("Reshape", [x, w.constant([-1, height, 1, width, 1])], f"{op.path}.apart")
        zeros = w.constant([0, 0, 0, 0, 0, 0, 0, stride[0] - 1, 0, stride[1] - 1])
        x = w.node("Pad", [x, zeros, zero], f"{op.path}.zeros", mode="constant")
        x = w.node("Reshape", [x, w.constant([-1, channels, *sizes])], f"{op.path}.spread")
    if min(pads) < 0:
        starts = [max(-pad, 0) for pad in pads[:2]]
        ends = [size + min(pad, 0) for size, pad in zip(sizes, pads[2:], strict=True)]
        x = w.node("Slice", [x, w.constant(starts), w.constant(ends), w.constant([2, 3])], f"{op.path}.cropped")
    return str(x)
