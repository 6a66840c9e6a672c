"""Cross-layer equalization: neighboring layers trade channel ranges, the network stays the same function.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.1. A ReLU (and
max or average pooling) is positively homogeneous: relu(s x) = s relu(x) for s > 0. So the output channels of one layer
may be divided by s and the input channels of the next multiplied by it; s = sqrt(r1 / r2) makes both ranges equal.
Other than there: a tensor may have several readers, and all scales are found on the ranges first and applied once.
ReLU6, GELU, SiLU are not homogeneous: such pairs are reported, not changed.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ptmq_lightning.models.absorb import FoldReport, absorb_input, absorb_output
from ptmq_lightning.models.flow import readers
from ptmq_lightning.models.nodes import module_of

_DEAD = 1e-6  # a channel below this share of its layer's largest range carries nothing: it keeps its scale
_SETTLED = 1e-3  # largest |log s| of a sweep at which the ranges count as equal


def equalize(gm: fx.GraphModule, *, sweeps: int = 40) -> FoldReport:
    """Equalize every pair of layers that only homogeneous operations separate; gm (norms folded) is changed."""
    report, pairs = FoldReport(), []
    for node in gm.graph.nodes:
        if isinstance(module_of(gm, node), (nn.Conv2d, nn.Linear)):
            axis = len(node.meta["shape"]) - (3 if isinstance(module_of(gm, node), nn.Conv2d) else 1)
            found, reason = readers(gm, node, axis, scale_only=True)
            if reason:
                report.kept.append((f"{node.target} (equalization)", reason))
            else:
                pairs.append((str(node.target), [str(reader.target) for reader in found]))
    for first, scale in _scales(gm, pairs, sweeps).items():
        seconds = dict(pairs)[first]
        absorb_output(gm.get_submodule(first), 1 / scale)  # type: ignore[arg-type]
        for second in seconds:
            absorb_input(gm.get_submodule(second), scale)  # type: ignore[arg-type]
        report.folded.append((f"{first} (equalization)", ", ".join(seconds)))
    return report


def _scales(gm: fx.GraphModule, pairs: list[tuple[str, list[str]]], sweeps: int) -> dict[str, Tensor]:
    """The factor s (O,) by which each first layer's output channels are divided, float64."""
    names = dict.fromkeys(name for first, seconds in pairs for name in (first, *seconds))
    ranges = {name: _ranges(gm.get_submodule(name)) for name in names}
    scales = {first: ranges[first].new_ones(ranges[first].shape[:2].numel()) for first, _ in pairs}
    for _ in range(sweeps):
        largest = 0.0
        for first, seconds in pairs:
            before = ranges[first].amax(2).reshape(-1)
            after = torch.stack([ranges[second].amax(1).reshape(-1) for second in seconds]).amax(0)
            alive = (before > _DEAD * before.max()) & (after > _DEAD * after.max())
            s = torch.where(alive, before / after, 1.0).sqrt()
            ranges[first] /= s.reshape(len(ranges[first]), -1, 1)
            for second in seconds:
                ranges[second] *= s.reshape(len(ranges[second]), 1, -1)
            scales[first] *= s
            largest = max(largest, s.log().abs().max().item())
        if largest < _SETTLED:
            break
    return scales


def _ranges(layer: nn.Module) -> Tensor:
    """Largest |weight| per pair of channels: (groups, O/groups, I/groups), float64."""
    weight, groups = layer.weight.detach().double().abs(), getattr(layer, "groups", 1)  # type: ignore[operator]
    return weight.reshape(*weight.shape[:2], -1).amax(2).reshape(groups, -1, weight.shape[1])
