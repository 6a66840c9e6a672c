"""LayerNorm reparametrization (PTMQ §1.10, §9.3): the channels behind a LayerNorm get one common range.

Source: Li et al. 2023, "RepQ-ViT", §3.2. With the step d_c and minimum m_c of every channel of the normalized tensor,
r = d / mean(d) and t = m / r - mean(m): the norm gets g' = g / r, beta' = beta / r - t, the layers that read it
W' = W diag(r), b' = b + W' t. Other than there: r and t serve all bit-widths, so d is the percentile range of the
channel and not a step found at one width.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from ptmq_lightning.models.absorb import FoldReport, absorb_input
from ptmq_lightning.models.flow import readers
from ptmq_lightning.models.nodes import module_of
from ptmq_lightning.runtime.hooks import watched_calls

_NARROWEST = 1e-2  # a channel's range is taken as at least this share of the mean range
_ROWS = 8192  # tokens of a batch that enter the percentiles
_LARGEST = 2**24  # values that torch.quantile takes at once


def reparametrize(gm: fx.GraphModule, images: Tensor, *, percentile: float = 0.1, batch: int = 32) -> FoldReport:
    """Give every LayerNorm that only layers read one range over its channels; gm (affine parts folded) is changed.

    images: (N, C, H, W), preprocessed. percentile: share in percent that is cut off at either end of a channel.
    """
    report, norms = FoldReport(), {}
    for node in gm.graph.nodes:
        if isinstance(norm := module_of(gm, node), nn.LayerNorm):
            found, reason = readers(gm, node, len(node.meta["shape"]) - 1)
            if reason or len(norm.normalized_shape) != 1:
                report.kept.append((f"{node.target} (reparametrization)", reason or "over several axes"))
            else:
                norms[str(node.target)] = [str(reader.target) for reader in found]
    for path, (low, high) in _channel_ranges(gm, list(norms), images, percentile / 100, batch).items():
        width = (high - low).clamp(min=max(_NARROWEST * (high - low).mean().item(), torch.finfo(torch.float32).tiny))
        r = width / width.mean()
        t = low / r - low.mean()
        gm.add_submodule(path, _rescaled(gm.get_submodule(path), r, t, images.dtype))  # type: ignore[arg-type]
        for reader in norms[path]:
            absorb_input(gm.get_submodule(reader), r, r * t)  # type: ignore[arg-type]
        report.folded.append((f"{path} (reparametrization)", ", ".join(norms[path])))
    return report


def _rescaled(norm: nn.LayerNorm, r: Tensor, t: Tensor, dtype: torch.dtype) -> nn.LayerNorm:
    """A LayerNorm with output y / r - t where the given one has y; r and t (C,) float64."""
    made = nn.LayerNorm(norm.normalized_shape, norm.eps, device=r.device)
    weight = torch.ones_like(r) if norm.weight is None else norm.weight.detach().double()
    bias = torch.zeros_like(r) if norm.bias is None else norm.bias.detach().double()
    made.weight, made.bias = nn.Parameter((weight / r).to(dtype)), nn.Parameter((bias / r - t).to(dtype))
    return made.eval()


def _channel_ranges(
    gm: fx.GraphModule, paths: list[str], images: Tensor, share: float, batch: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Lower and upper percentile (C,) of each norm's output, averaged over batches of images, float64."""
    sums: dict[str, Tensor] = {}

    def watch(path: str, _: tuple[Tensor, ...], y: Tensor) -> None:
        rows = y.flatten(0, -2)  # (tokens of the batch, C)
        most = min(_ROWS, _LARGEST // rows.shape[1])
        rows = rows[:: max(1, -(-len(rows) // most))]
        sums[path] = sums.get(path, 0.0) + torch.quantile(rows, rows.new_tensor([share, 1 - share]), dim=0).double()

    batches = images.split(batch)
    with watched_calls({path: gm.get_submodule(path) for path in paths}, watch), torch.no_grad():
        for part in batches:
            gm(part)
    return {path: tuple(total / len(batches)) for path, total in sums.items()}
