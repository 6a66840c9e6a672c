"""What an ML program says, computed with torch: Core ML itself runs on Apple's devices alone.

Every operation computes in float32 from float16 values and rounds its result to float16, as the types of the program
say. Weights are decompressed by coremltools.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.flow import LAYERS
from ptmq_lightning.export.onnx_convert import IMAGES, LOGITS
from ptmq_lightning.export.targets import Run
from ptmq_lightning.export.values import Array, grid_shape
from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.model import weights_of

WEIGHT = "constexpr_blockwise_shift_scale"
PRODUCTS = ("conv", "linear", "matmul")
_MOVES = ("reshape", "transpose", "expand_dims", "squeeze", "slice_by_index", "split", "max_pool", "pad", "gather")


def computed(program: Any, feed: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs by name, of inputs by name, float32."""
    function = program.functions["main"]
    known: dict[str, Any] = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in feed.items()}
    for op in function.operations:
        if op.op_type == "const":
            known[op.outputs[0].name] = op.outputs[0].val
        elif op.op_type.startswith("constexpr"):
            known[op.outputs[0].name] = _weight(op)
        else:
            given = {key: _value(value, known) for key, value in op.inputs.items() if value is not None}
            made = OPERATORS[op.op_type](**given)
            for output, value in zip(op.outputs, made if isinstance(made, tuple) else (made,), strict=True):
                known[output.name] = value.half().float() if "fp16" in str(output) else value
    return {output.name: known[output.name].numpy() for output in function.outputs}


def images_to_logits(program: Any) -> Run:
    """images (B, C, H, W) -> logits (B, classes), one by one as the program has them."""
    return lambda images: np.concatenate([computed(program, {IMAGES: x[None]})[LOGITS] for x in images])


def _weight(op: Any) -> Any:
    if not hasattr(op, "_ptmq_dense"):  # decompressed once for all images
        op._ptmq_dense = op.materialized_val_inference()
    return op._ptmq_dense


def _value(value: Any, known: Mapping[str, Any]) -> Any:
    return [known[part.name] for part in value] if isinstance(value, (list, tuple)) else known[value.name]


def float_operators(program: Any) -> dict[str, int]:
    """Convolutions and products of which an activation is not int8, by operation."""
    found = Counter[str]()
    for op in program.functions["main"].operations:
        if op.op_type in PRODUCTS:
            inputs = [op.inputs["x"], *([op.inputs["y"]] if op.op_type == "matmul" else [])]
            found[op.op_type] += any(not _is_integer(value) for value in inputs)
    return {kind: count for kind, count in found.items() if count}


def _is_integer(value: Any) -> bool:
    while value.op is not None and value.op.op_type in _MOVES:
        value = value.op.inputs["x"]
    return value.op is not None and (value.op.op_type == "dequantize" or value.val is not None)


def require_same_weights(draft: Draft, name: str, program: Any) -> None:
    """Raises ExportError where a weight, decompressed by coremltools, is other than the model's codes times its steps
    in float16."""
    made = [op for op in program.functions["main"].operations if op.op_type == WEIGHT]  # in the network's order
    weights: dict[str, Any] = {path.split(".", 2)[2]: weight for path, weight in weights_of(draft.model)}
    widths = dict(draft.assignments[name].layers)
    layers = [op.path for op in draft.ops if op.key in LAYERS and op.path in weights]
    for layer, op in zip(layers, made, strict=True):
        weight, bits = weights[layer], widths[layer].w
        codes, step = (part.detach().cpu().numpy() for part in weight.multiples(bits))
        wanted = codes.astype(np.float16) * grid_shape(step, codes).astype(np.float16)
        if apart := int((np.asarray(_weight(op)) != wanted).sum()):
            raise ExportError(
                f"{apart} weights of '{layer}' at {name} are not the model's codes times its steps; expected the "
                f"same. Run `ptmq verify`, and report it."
            )


def _tensor(value: Any) -> Tensor:
    return value.float() if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value, dtype=np.float32))


def _cast(x: Tensor, dtype: str) -> Tensor:
    return x.float()


def _quantize(input: Tensor, scale: Any, zero_point: Any, **_: Any) -> Tensor:
    return torch.clamp(torch.round(input / float(scale)) + int(zero_point), -128, 127)


def _dequantize(input: Tensor, scale: Any, zero_point: Any, **_: Any) -> Tensor:
    return (input - int(zero_point)) * float(scale)


def _conv(
    x: Tensor, weight: Any, strides: Any, pad: Any, dilations: Any, groups: Any, bias: Any = None, **_: Any
) -> Tensor:
    x = _padded(x, pad)
    own = None if bias is None else _tensor(bias)
    return F.conv2d(x, _tensor(weight), own, tuple(strides), 0, tuple(dilations), int(groups))


def _padded(x: Tensor, pad: Any, value: float = 0.0) -> Tensor:
    top, bottom, left, right = (int(width) for width in pad)
    return F.pad(x, (left, right, top, bottom), value=value)


def _linear(x: Tensor, weight: Any, bias: Any = None) -> Tensor:
    return F.linear(x, _tensor(weight), None if bias is None else _tensor(bias))


def _max_pool(x: Tensor, kernel_sizes: Any, strides: Any, pad: Any, **_: Any) -> Tensor:
    return F.max_pool2d(_padded(x, pad, -torch.inf), tuple(kernel_sizes), tuple(strides))


def _avg_pool(
    x: Tensor, kernel_sizes: Any, strides: Any, pad: Any, exclude_padding_from_average: Any, **_: Any
) -> Tensor:
    sizes, steps = tuple(kernel_sizes), tuple(strides)
    made = F.avg_pool2d(_padded(x, pad), sizes, steps)
    if exclude_padding_from_average:
        made = made / F.avg_pool2d(_padded(torch.ones_like(x), pad), sizes, steps)
    return made


def _sliced(x: Tensor, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any, **_: Any) -> Tensor:
    for axis in range(x.dim()):
        size, step = x.shape[axis], int(stride[axis])
        first = (0 if step > 0 else size - 1) if begin_mask[axis] else int(begin[axis])
        last = (size if step > 0 else -1) if end_mask[axis] else int(end[axis])
        x = x.index_select(axis, torch.arange(first, last, step))
    return x


def _pad(x: Tensor, pad: Any, mode: str, constant_val: Any) -> Tensor:
    widths = tuple(int(width) for pair in reversed(np.reshape(pad, (-1, 2)).tolist()) for width in pair)
    if mode == "constant":
        return F.pad(x, widths, value=float(constant_val))
    return F.pad(x, widths[:4], mode=mode)


def _gelu(x: Tensor, mode: str) -> Tensor:
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _layer_norm(x: Tensor, axes: Any, epsilon: Any, gamma: Any, beta: Any = None) -> Tensor:
    shape = tuple(x.shape[int(axis)] for axis in axes)
    return F.layer_norm(x, shape, _tensor(gamma), None if beta is None else _tensor(beta), float(epsilon))


def _matmul(x: Any, y: Any, **_: Any) -> Tensor:
    return _tensor(x) @ _tensor(y)


def _both(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: function(_tensor(x), _tensor(y))


OPERATORS: dict[str, Callable[..., Any]] = {
    "cast": _cast, "quantize": _quantize, "dequantize": _dequantize, "conv": _conv, "linear": _linear,
    "matmul": _matmul, "add": _both(torch.add), "sub": _both(torch.sub), "mul": _both(torch.mul),
    "real_div": _both(torch.div), "maximum": _both(torch.maximum), "minimum": _both(torch.minimum),
    "clip": lambda x, alpha, beta: x.clamp(float(alpha), float(beta)), "relu": lambda x: x.relu(),
    "sigmoid": lambda x: x.sigmoid(), "tanh": lambda x: x.tanh(), "gelu": _gelu, "layer_norm": _layer_norm,
    "sigmoid_hard": lambda x, alpha, beta: (x * float(alpha) + float(beta)).clamp(0, 1),
    "softmax": lambda x, axis: x.softmax(int(axis)), "max_pool": _max_pool, "avg_pool": _avg_pool,
    "reduce_mean": lambda x, axes, keep_dims: x.mean([int(a) for a in axes], bool(keep_dims)),
    "reshape": lambda x, shape: x.reshape([int(size) for size in shape]),
    "transpose": lambda x, perm: x.permute([int(axis) for axis in perm]), "slice_by_index": _sliced, "pad": _pad,
    "expand_dims": lambda x, axes: _expanded(x, axes), "squeeze": lambda x, axes: _squeezed(x, axes),
    "concat": lambda values, axis, interleave=False: torch.cat([_tensor(v) for v in values], int(axis)),
    "split": lambda x, split_sizes, axis: torch.split(x, [int(size) for size in split_sizes], int(axis)),
    "tile": lambda x, reps: x.repeat([int(n) for n in reps]),
    "gather": lambda x, indices, axis, **_: x.index_select(int(axis), torch.from_numpy(np.asarray(indices)).long()),
}  # fmt: skip


def _expanded(x: Tensor, axes: Any) -> Tensor:
    for axis in sorted(int(a) for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeezed(x: Tensor, axes: Any) -> Tensor:
    return x.squeeze(tuple(int(axis) for axis in axes))
