from __future__ import annotations

import torch
from torch import Tensor, nn

from ptmq_lightning.models import fold, graph
from ptmq_lightning.models.reparametrize import reparametrize


class Normed(nn.Module):
    """Tokens of very different channel ranges behind a norm that two linears read."""

    def __init__(self, residual: bool = False) -> None:
        super().__init__()
        self.norm, self.a, self.b, self.residual = (
            nn.LayerNorm(4),
            nn.Linear(4, 4),
            nn.Linear(4, 4, bias=False),
            residual,
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.flatten(2).transpose(1, 2) * torch.tensor([0.1, 1.0, 3.0, 9.0]))
        return self.a(y) * self.b(y) + (y if self.residual else 0)


IMAGES = torch.randn(8, 4, 12, 12, generator=torch.Generator().manual_seed(0))


def test_all_channels_get_one_range():
    gm = graph.trace(Normed().eval(), (4, 12, 12))
    fold.fold(gm)
    reparametrize(gm, IMAGES, percentile=0.5)
    seen = []
    gm.get_submodule("norm").register_forward_hook(lambda _module, _args, y: seen.append(y.flatten(0, 1)))
    with torch.no_grad():
        gm(IMAGES)
    low, high = torch.quantile(seen[0], torch.tensor([0.005, 0.995]), dim=0)
    assert (low - low.mean()).abs().max() < 1e-4 * (high - low).mean()  # fp32 rounding
    assert (high - high.mean()).abs().max() < 1e-4 * (high - low).mean()


def test_the_network_stays_the_same_function(error):
    module = Normed().eval()
    gm = graph.trace(module, (4, 12, 12))
    fold.fold(gm)
    report = reparametrize(gm, IMAGES)
    assert report.folded == [("norm (reparametrization)", "a, b")]
    with torch.no_grad():
        assert error(gm(IMAGES), module(IMAGES)) < 1e-5


def test_a_norm_that_the_residual_stream_reads_is_left_alone():
    gm = graph.trace(Normed(residual=True).eval(), (4, 12, 12))
    report = reparametrize(gm, IMAGES)
    assert report.folded == []
    assert report.kept == [("norm (reparametrization)", "read by add (add)")]


def test_a_channel_without_range_stays_finite():
    class Flat(Normed):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.norm(x.flatten(2).transpose(1, 2) * 0))

    gm = graph.trace(Flat().eval(), (4, 12, 12))
    fold.fold(gm)
    reparametrize(gm, IMAGES)
    with torch.no_grad():
        assert gm(IMAGES).isfinite().all()
