"""The full measure of how much one layer's width hurts: the divergence of the network's answer from the float one.

Source: PTMQ §5. Omega_l(w, a) = mean over images of KL(softmax f_FP || softmax f_l), where f_l runs layer l at (w, a)
and every other layer at the model's widest pair (the deploy-side variant). B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from ptmq_lightning.allocate.sensitivity import MEASURES, Measure, reference
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth


@MEASURES.register("divergence")
class Divergence(Measure):
    """Runs the rest of the network for every layer and pair."""

    @torch.inference_mode()
    def __init__(
        self, model: MultiBitModel, images: Tensor, base: Mapping[str, BitWidth], batch: int | None = None
    ) -> None:
        super().__init__(model, images, base, batch)
        with reference(model):
            self.float_answers = [log_softmax(model(x), dim=1) for x in self.images]  # (B, C) each
        with self.changed({}):
            self.at_base = mean_kl(self.float_answers, [log_softmax(model(x), dim=1) for x in self.images])
        self.features = self.images  # the input of the block at hand, (B, ...) each

    @torch.inference_mode()
    def start(self, index: int) -> None:
        if index:
            with self.changed({}):
                self.features = [self.model.blocks[index - 1](x) for x in self.features]

    @torch.inference_mode()
    def harm(self, name: str, pair: BitWidth) -> float:
        layer = self.model.layers[name]
        own = layer.width(pair)
        if own == self.base[name]:
            return self.at_base
        with self.changed({name: own}):
            return mean_kl(self.float_answers, [self._rest(layer.block, x) for x in self.features])

    def _rest(self, index: int, x: Tensor) -> Tensor:
        """Log-probabilities (B, C) from the input of a block."""
        for block in self.model.blocks[index:]:
            x = block(x)
        return log_softmax(x, dim=1)


def mean_kl(expected: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Mean over images of KL(expected || other); both are log-probabilities (B, C) in batches."""
    return float(kl_of_images(expected, other).mean())


def kl_of_images(expected: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """KL(expected || other) of each image, float64 (N,); both are log-probabilities (B, C) in batches."""
    pairs = zip(expected, other, strict=True)
    return torch.cat([
        kl_div(q.double(), p.double(), log_target=True, reduction="none").sum(dim=1).cpu() for p, q in pairs
    ])  # fmt: skip
