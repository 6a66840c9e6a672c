"""Cross-layer equalization: neighboring layers trade channel ranges, the network stays the same function.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", §4.1. A ReLU (and
max or average pooling) is positively homogeneous: relu(s x) = s relu(x) for s > 0. So the output channels of one layer
may be divided by s and the input channels of the next multiplied by it. ReLU6, GELU, SiLU are not homogeneous: such
pairs are reported, not changed.

Other than there, s does not balance the weights of the two layers. Every output channel has a step size of its own, so
dividing it costs the first layer nothing; what has one step size for all channels is the tensor between the two. With
p_c the peak of channel c of that tensor, and w_c how much of the second layer's range its column c takes,
s_c = sqrt(p_c / w_c): half the spread for the tensor, half for the weights, as in Xiao et al. 2023, "SmoothQuant", §4.
A depthwise layer has nothing to balance, each of its columns is an output channel: there s_c = p_c.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from ptmq_lightning.models.absorb import FoldReport, absorb_input, absorb_output
from ptmq_lightning.models.flow import readers
from ptmq_lightning.models.nodes import module_of
from ptmq_lightning.runtime.hooks import watched_inputs

_LOWEST = 1e-2  # a channel's peak is taken as at least this share of the mean peak: new images may show more of it
_DEAD = 1e-6  # a column below this share of the largest carries nothing: its channel keeps its scale


@torch.no_grad()
def equalize(gm: fx.GraphModule, images: Tensor, *, batch: int = 32) -> FoldReport:
    """Equalize every pair of layers that only homogeneous operations separate; gm (norms folded) is changed.

    images: (N, C, H, W), preprocessed; they tell the peaks.
    """
    report, pairs = FoldReport(), {}
    for node in gm.graph.nodes:
        if isinstance(module_of(gm, node), (nn.Conv2d, nn.Linear)):
            axis = len(node.meta["shape"]) - (3 if isinstance(module_of(gm, node), nn.Conv2d) else 1)
            found, reason = readers(gm, node, axis, scale_only=True)
            if reason:
                report.kept.append((f"{node.target} (equalization)", reason))
            else:
                pairs[str(node.target)] = [str(reader.target) for reader in found]
    peaks = _peaks({name: gm.get_submodule(name) for names in pairs.values() for name in names}, gm, images, batch)
    for first, names in pairs.items():
        layers = [gm.get_submodule(name) for name in names]
        scale = _scale(layers, torch.stack([peaks[name] for name in names]).amax(0))
        absorb_output(gm.get_submodule(first), 1 / scale)  # type: ignore[arg-type]
        for layer in layers:
            absorb_input(layer, scale)  # type: ignore[arg-type]
        report.folded.append((f"{first} (equalization)", ", ".join(names)))
    return report


def _peaks(layers: dict[str, nn.Module], gm: fx.GraphModule, images: Tensor, batch: int) -> dict[str, Tensor]:
    """max |x| per input channel (I,) of every layer, float64."""
    peaks: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        channel = -1 if isinstance(layers[name], nn.Linear) else -3
        peak = x.abs().movedim(channel, -1).flatten(0, -2).amax(0).double()
        peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

    with watched_inputs(layers, see):
        for part in images.split(batch) if layers else ():
            gm(part)
    return peaks


def _scale(layers: Sequence[nn.Module], peak: Tensor) -> Tensor:
    """s (C,) of a tensor with these peaks (C,) and readers; its geometric mean over the channels that carry is 1."""
    columns = torch.stack([_columns(layer) for layer in layers]).amax(0)
    alive = (columns > _DEAD * columns.max()) & (peak.max() > 0)
    peak = peak.clamp(min=_LOWEST * float(peak.mean()))
    free = all(_depthwise(layer) for layer in layers)
    scale = torch.where(alive, peak if free else (peak / columns).sqrt(), 1.0)
    return torch.where(alive, scale / scale[alive].log().mean().exp(), 1.0)


def _depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


def _columns(layer: nn.Module) -> Tensor:
    """How much of the range of its output channels each input channel (I,) takes, root mean square, float64."""
    weight, groups = layer.weight.detach().double().abs(), getattr(layer, "groups", 1)  # type: ignore[operator]
    largest = weight.reshape(*weight.shape[:2], -1).amax(2).reshape(groups, -1, weight.shape[1])  # (g, O/g, I/g)
    share = largest / largest.amax(2, keepdim=True).clamp_min(torch.finfo(largest.dtype).tiny)
    return share.square().mean(1).sqrt().reshape(-1)
