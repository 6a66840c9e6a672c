"""A network that tracing does not do justice to is refused; one that it does is told how near it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.compose.library import quantize
from ptmq_lightning.models import blocks, fold, graph
from ptmq_lightning.models.faithful import TOLERANCE, require_same
from ptmq_lightning.runtime.errors import ModelError
from tests.networks import images, small_network


class Looks(nn.Module):
    """Halves its input where `asked` of it is true."""

    def __init__(self, asked: str) -> None:
        super().__init__()
        self.conv, self.fc, self.asked = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), asked

    def forward(self, x: Tensor) -> Tensor:
        if (x.mean() > 0) if self.asked == "bright" else (x.mean() < 0):
            x = x * 0.5
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("asked", ["bright", "dark"])
def test_a_forward_that_depends_on_its_data_is_refused_whichever_draw_shows_it(asked: str) -> None:
    torch.manual_seed(0)
    x = images(32).abs()
    x[:16] = -x[:16]  # the first draw is dark, the last one bright
    with pytest.raises(ModelError) as error:
        quantize(Looks(asked).eval(), x)
    assert "looks at the values of its input" in str(error.value)
    assert ("last" if asked == "bright" else "first") in str(error.value)


def test_a_folded_network_is_far_below_the_tolerance() -> None:
    network = small_network()
    gm = graph.trace(network, (3, 8, 8))
    fold.fold(gm)
    assert require_same(network, blocks.cut(gm, images(2)), images()) < TOLERANCE / 100
