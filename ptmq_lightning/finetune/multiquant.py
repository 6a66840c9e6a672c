"""MultiQuant: training once for multi-bit quantization (Xu, Feng, Zhang, Wang, IJCAI 2022).

One weight-sharing network; per iteration the lowest, one random and the highest width are trained together, with labels
that the wider widths soften, because one-hot labels set the widths against each other. From abstract and
summaries; the rest is [our choice]:
- Step sizes as in LSQ, one per width and output channel (weights) or tensor (activations), all learned.
- The adaptive label of a width: (1 - p) onehot + p q, q the mean softmax of the iteration's wider widths, p the
  probability that q gives to the true class, image by image: where the wider widths err, the label is the hard one.
- One scale and shift of each BatchNorm for all widths; its statistics are re-estimated for a width from training
  images. They are estimated once and kept here; what re-estimating at every switch costs is measured beside it.
- The paper's search for mixed precision is not part of it: `bits=mixed` allocates widths for every method alike.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ptmq_lightning.finetune.fit import BASELINES, FineTuning, soft_cross_entropy
from ptmq_lightning.finetune.layers import LsqWeight, SharedWeight
from ptmq_lightning.finetune.network import SharedModel, make_trainable, reestimate
from ptmq_lightning.finetune.switching import clock_of
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth
from ptmq_lightning.runtime.weights import MultiBitWeight


@BASELINES.register("multiquant")
class MultiQuant(FineTuning):
    """The highest width learns the hard label; the random and the lowest one adaptive labels."""

    network: SharedModel

    @classmethod
    def trainable(cls, model: MultiBitModel) -> SharedModel:
        return make_trainable(model, _weight, shared_norms=True, learn_step_sizes=True)

    def losses(self, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        wider: list[Tensor] = []
        for pair in self.draw():
            self.network.switch(pair)
            logits = self.network(images)
            label = adaptive_label(labels, wider) if wider else None
            yield str(pair), cross_entropy(logits, labels) if label is None else soft_cross_entropy(logits, label)
            wider.append(logits.detach().softmax(dim=1))

    def draw(self) -> list[BitWidth]:
        """Highest, one between, lowest; fewer where there are fewer."""
        lowest, *between, highest = self.network.pairs if len(self.network.pairs) > 1 else self.network.pairs * 2
        drawn = [highest]
        if between:
            drawn.append(between[int(torch.randint(len(between), (), generator=self.draws))])
        return [*drawn, lowest] if lowest != highest else drawn

    def finish(self, images: Tensor) -> None:
        """The norms' statistics of every pair, and what it would cost to estimate them again at a switch."""
        network, chosen = self.network, images[: self.keys.statistics_images]
        clock = clock_of(images.is_cuda)
        started = clock()
        for pair in network.pairs:
            reestimate(network, chosen, pair)
        taken = 1000 * (clock() - started) / len(network.pairs)
        network.statistics = {"images": len(chosen), "milliseconds": taken}


def adaptive_label(labels: Tensor, wider: list[Tensor]) -> Tensor:
    """Soft label (B, classes) from hard labels (B,) and the probabilities (B, classes) of wider widths."""
    mean = torch.stack(wider).mean(dim=0)
    trust = mean.gather(1, labels.unsqueeze(1))  # (B, 1)
    return (1 - trust) * one_hot(labels, mean.shape[1]) + trust * mean


def _weight(info: LayerInfo, frozen: MultiBitWeight) -> SharedWeight:
    return LsqWeight(frozen)
