"""Norms and softmaxes that were not folded, for ONNX: layer, batch, group, instance, root-mean-square and p-norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.onnx_emit import Emit, argument, axes_of, constant_of, numbers, rank_of, refuse, shape_of
from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.export.values import Array

EPS32 = float(np.finfo(np.float32).eps)


def _layer_norm(w: Writer, op: Op, names: Sequence[str]) -> str:
    size = argument(op, 1, "normalized_shape")
    scale, shift = constant_of(op, 2, "weight"), constant_of(op, 3, "bias")
    inputs = [names[0], numbers(w, np.ones(size) if scale is None else scale)]
    inputs += [] if shift is None else [numbers(w, shift)]
    return str(
        w.node("LayerNormalization", inputs, op.name, axis=-len(size), epsilon=float(argument(op, 4, "eps", 1e-5)))
    )


def _batch_norm(w: Writer, op: Op, names: Sequence[str]) -> str:
    mean, variance = constant_of(op, 1, "running_mean"), constant_of(op, 2, "running_var")
    if mean is None or variance is None:
        raise refuse(op, "it has no running statistics")
    positions = (3, 4, 7) if op.key == "batch_norm" else (0, 0, 0)
    scale, shift = constant_of(op, positions[0], "weight"), constant_of(op, positions[1], "bias")
    own = (np.ones_like(mean) if scale is None else scale, np.zeros_like(mean) if shift is None else shift)
    values = [numbers(w, value) for value in (*own, mean, variance)]
    eps = float(argument(op, positions[2], "eps", 1e-5))
    return str(w.node("BatchNormalization", [names[0], *values], op.name, epsilon=eps))


def _group_norm(w: Writer, op: Op, names: Sequence[str]) -> str:
    """As the instance norm of (B, groups, rest), then the affine part per channel."""
    groups = int(argument(op, 1, "num_groups"))
    scale, shift = constant_of(op, 2, "weight"), constant_of(op, 3, "bias")
    shape, eps = shape_of(op), float(argument(op, 4, "eps", 1e-5))
    ones, zeros = numbers(w, np.ones(groups)), numbers(w, np.zeros(groups))
    x = w.node("Reshape", [names[0], w.constant([0, groups, -1])], f"{op.name}.groups")
    x = w.node("InstanceNormalization", [x, ones, zeros], f"{op.name}.norm", epsilon=eps)
    x = w.node("Reshape", [x, w.constant([-1, *shape[1:]])], op.name)
    return _affine(w, op, x, _per_channel(scale, len(shape)), _per_channel(shift, len(shape)))


def _per_channel(value: Array | None, rank: int) -> Array | None:
    return None if value is None else value.reshape(-1, *[1] * (rank - 2))


def _affine(w: Writer, op: Op, x: str, scale: Array | None, shift: Array | None) -> str:
    x = x if scale is None else w.node("Mul", [x, numbers(w, scale)], op.name)
    return x if shift is None else str(w.node("Add", [x, numbers(w, shift)], op.name))


def _instance_norm(w: Writer, op: Op, names: Sequence[str]) -> str:
    if op.module is not None and op.module.running_mean is not None:
        return _batch_norm(w, op, names)
    channels = shape_of(op)[1]
    scale, shift = constant_of(op, 3, "weight"), constant_of(op, 4, "bias")
    own = (np.ones(channels) if scale is None else scale, np.zeros(channels) if shift is None else shift)
    eps = float(argument(op, 7, "eps", 1e-5))
    return str(w.node("InstanceNormalization", [names[0], *(numbers(w, v) for v in own)], op.name, epsilon=eps))


def _rms_norm(w: Writer, op: Op, names: Sequence[str]) -> str:
    axes = [-i for i in range(len(argument(op, 1, "normalized_shape")), 0, -1)]
    eps = argument(op, 3, "eps")
    square = w.node("Mul", [names[0], names[0]], f"{op.name}.square")
    mean = w.node("ReduceMean", [square, w.constant(axes)], f"{op.name}.mean", keepdims=1)
    mean = w.node("Add", [mean, numbers(w, EPS32 if eps is None else eps)], f"{op.name}.mean")
    x = str(w.node("Div", [names[0], w.node("Sqrt", [mean], f"{op.name}.root")], op.name))
    return _affine(w, op, x, constant_of(op, 2, "weight"), None)


def _normalize(w: Writer, op: Op, names: Sequence[str]) -> str:
    size = _length(w, op, names[0], argument(op, 1, "p", 2.0), [int(argument(op, 2, "dim", 1))], True)
    size = w.node("Max", [size, numbers(w, float(argument(op, 3, "eps", 1e-12)))], f"{op.name}.length")
    return str(w.node("Div", [names[0], size], op.name))


def _norm(w: Writer, op: Op, names: Sequence[str]) -> str:
    axes = axes_of(argument(op, 2, "dim"), rank_of(op))
    return _length(w, op, names[0], argument(op, 1, "p", 2), axes, bool(argument(op, 3, "keepdim", False)))


def _length(w: Writer, op: Op, x: str, p: Any, axes: list[int], keep: bool) -> str:
    if p not in (1, 2, "fro"):
        raise refuse(op, f"the norm of p={p}")
    kind = "ReduceL1" if p == 1 else "ReduceL2"
    return str(w.node(kind, [x, w.constant(axes)], f"{op.name}.length", keepdims=int(keep)))


def _softmax(w: Writer, op: Op, names: Sequence[str]) -> str:
    axis = argument(op, 1, "dim", -1)
    kind = "LogSoftmax" if op.key in ("log_softmax", "LogSoftmax") else "Softmax"
    axis = -3 if op.key == "Softmax2d" else -1 if axis is None else int(axis)
    return str(w.node(kind, list(names[:1]), op.name, axis=axis))


NORMS: dict[str, Emit] = {
    **{key: _layer_norm for key in ("LayerNorm", "layer_norm")},
    **{key: _batch_norm for key in ("BatchNorm2d", "BatchNorm1d", "batch_norm")},
    **{key: _group_norm for key in ("GroupNorm", "group_norm")},
    **{key: _instance_norm for key in ("InstanceNorm2d", "InstanceNorm1d", "instance_norm")},
    **{key: _rms_norm for key in ("RMSNorm", "rms_norm")},
    **{key: _softmax for key in ("Softmax", "softmax", "Softmax2d", "LogSoftmax", "log_softmax")},
    "normalize": _normalize, "norm": _norm,
}  # fmt: skip
