"""How a tensor's values lie in memory, for what looks at values one after the other whatever their order.

Convolutions of a CPU compute with the channels of a place side by side (channels last) and copy what comes in another
order; a tensor of either order is `dense` and can be read as one row of values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_VECTOR = 16  # numbers in a register of AVX-512


def is_dense(x: Tensor) -> bool:
    """Whether x has no gaps in memory, in whatever order its dimensions lie."""
    return x.is_contiguous() or torch.empty_like(x, device="meta").stride() == x.stride()


def dense(x: Tensor) -> Tensor:
    """x, or a copy of it that is dense, in the same order."""
    return x if is_dense(x) else x.clone()


def flat(x: Tensor) -> Tensor:
    """The values of a dense tensor (n,) in the order in which they lie in memory."""
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def channels_last(x: Tensor) -> bool:
    """Whether features (B, C, H, W) lie in memory as (B, H, W, C), and not as (B, C, H, W) too."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def trains_channels_last(network: nn.Module) -> bool:
    """Whether a CPU may train a network whose features have their channels last.

    It may not where the gradient of a weight (O, I, 1, 1) is taken behind a stride with I < 16: oneDNN writes past its
    buffer there, which ends the process, hangs, or gives other numbers (uxlfoundation/oneDNN#6035).
    """
    return not any(_strided_narrow_1x1(module) for module in network.modules())


def _strided_narrow_1x1(module: Any) -> bool:
    stride, groups = getattr(module, "stride", None), getattr(module, "groups", None)
    if not isinstance(stride, tuple) or max(stride) == 1 or groups != 1:
        return False  # no convolution, or none of these
    weight = module.weight  # a tensor, or what gives one
    _, width, *kernel = (weight if hasattr(weight, "shape") else weight()).shape
    return set(kernel) == {1} and width < _VECTOR


def rows(x: Tensor, *, last: bool) -> Tensor:
    """(B, ...) -> (B, n), each image's values in a row: channels last, or in the order of the dimensions."""
    return (x.permute(0, 2, 3, 1) if last else x).flatten(1)


def from_rows(values: Tensor, shape: torch.Size, *, last: bool) -> Tensor:
    """The features (B, ...) whose `rows` are these (B, n): a view of them; shape: of the features, whatever their
    number."""
    if not last:
        return values.view(len(values), *shape[1:])
    _, channels, height, width = shape
    return values.view(len(values), height, width, channels).permute(0, 3, 1, 2)
