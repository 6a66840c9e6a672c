"""The operations that a saved graph may name: closed tables of pure functions, tensor methods, layers and constants.

Nothing here writes, reads files or calls what it is given: a graph made of these names computes and can do no more.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_ROOMS: dict[str, tuple[Any, str]] = {
    "operator": (operator, "add eq floordiv ge getitem gt le lt matmul mod mul ne neg pow sub truediv"),
    "torch": (
        torch,
        "abs add addcdiv addcmul addmm amax amin argmax avg_pool1d baddbmm bmm cat ceil channel_shuffle chunk clamp"
        " clamp_max clamp_min clip concat cos div einsum erf exp eq expm1 flatten flip floor ge gt le log log1p"
        " log_softmax logsumexp lt masked_fill matmul max maximum mean min minimum movedim mul narrow ne neg norm"
        " permute pow prod reciprocal relu reshape roll round rsqrt select selu sigmoid sign sin softmax split sqrt"
        " square squeeze stack std sub sum swapaxes swapdims tanh tile topk transpose tril triu unbind unflatten"
        " unsqueeze var where index_select gather repeat_interleave",
    ),
    "F": (
        F,
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d avg_pool2d batch_norm celu conv1d conv2d"
        " conv_transpose2d elu fold gelu glu group_norm hardsigmoid hardswish hardtanh instance_norm interpolate"
        " layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid max_pool1d max_pool2d mish normalize"
        " pad pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm scaled_dot_product_attention selu sigmoid silu"
        " softmax softplus softsign tanh unfold",
    ),
}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{room}.{name}": getattr(home, name) for room, (home, names) in _ROOMS.items() for name in names.split()
}
_METHODS = (
    "abs add addcmul amax amin argmax bmm ceil chunk clamp clamp_max clamp_min clip clone contiguous cos detach div",
    "erf exp expand expand_as flatten flip float floor gather index_select log log1p log_softmax logsumexp masked_fill",
    "matmul max maximum mean min minimum movedim mul narrow neg norm permute pow prod reciprocal relu repeat",
    "repeat_interleave reshape roll round rsqrt select sigmoid sign sin size softmax split sqrt square squeeze std sub",
    "sum swapaxes swapdims t tanh tile to topk transpose tril triu type_as unbind unflatten unfold unsqueeze var where",
)
METHODS = frozenset(name for line in _METHODS for name in line.split())
_POOL = "kernel_size stride padding"
_CONV = f"in_channels out_channels {_POOL} dilation groups bias padding_mode"
_BATCH_NORM = "num_features eps affine track_running_stats"
LAYERS: dict[str, tuple[str, ...]] = {  # class of torch.nn -> the constructor arguments that matter in eval mode
    name: tuple(arguments.split())
    for name, arguments in {
        "AdaptiveAvgPool1d": "output_size", "AdaptiveAvgPool2d": "output_size", "AdaptiveMaxPool2d": "output_size",
        "AvgPool1d": f"{_POOL} ceil_mode count_include_pad",
        "AvgPool2d": f"{_POOL} ceil_mode count_include_pad divisor_override",
        "BatchNorm1d": _BATCH_NORM, "BatchNorm2d": _BATCH_NORM, "CELU": "alpha", "ChannelShuffle": "groups",
        "ConstantPad2d": "padding value", "Conv1d": _CONV, "ConvTranspose2d": f"{_CONV} output_padding",
        "ELU": "alpha", "Flatten": "start_dim end_dim", "GELU": "approximate", "GLU": "dim",
        "GroupNorm": "num_groups num_channels eps affine", "Hardsigmoid": "", "Hardswish": "",
        "Hardtanh": "min_val max_val", "Identity": "", "InstanceNorm1d": _BATCH_NORM, "InstanceNorm2d": _BATCH_NORM,
        "LayerNorm": "normalized_shape eps elementwise_affine bias", "LeakyReLU": "negative_slope",
        "LocalResponseNorm": "size alpha beta k", "LogSigmoid": "", "LogSoftmax": "dim",
        "MaxPool1d": f"{_POOL} dilation ceil_mode", "MaxPool2d": f"{_POOL} dilation ceil_mode", "Mish": "",
        "PReLU": "num_parameters", "PixelShuffle": "upscale_factor", "PixelUnshuffle": "downscale_factor",
        "RMSNorm": "normalized_shape eps elementwise_affine", "ReLU": "", "ReLU6": "", "ReflectionPad2d": "padding",
        "ReplicationPad2d": "padding", "SELU": "", "SiLU": "", "Sigmoid": "", "Softmax": "dim", "Softmax2d": "",
        "Softplus": "beta threshold", "Softsign": "", "Tanh": "", "Unflatten": "dim unflattened_size",
        "Unfold": "kernel_size dilation padding stride",
        "Upsample": "size scale_factor mode align_corners recompute_scale_factor",
        "UpsamplingBilinear2d": "size scale_factor", "UpsamplingNearest2d": "size scale_factor", "ZeroPad2d": "padding",
    }.items()
}  # fmt: skip
CONSTANTS: dict[str, Any] = {
    str(value): value
    for value in (
        *(float("inf"), float("-inf"), float("nan"), Ellipsis, torch.contiguous_format, torch.channels_last),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
TAGGED = (float, torch.dtype, torch.memory_format, types.EllipsisType)
NAME_OF = {function: name for name, function in FUNCTIONS.items()}
_HOLDERS = {"affine": "weight", "elementwise_affine": "weight", "bias": "bias", "track_running_stats": "running_mean"}


def constructor_value(module: nn.Module, name: str) -> Any:
    """The argument a layer would be built with now (its affine part may have gone since it was built)."""
    return getattr(module, _HOLDERS[name]) is not None if name in _HOLDERS else getattr(module, name)
