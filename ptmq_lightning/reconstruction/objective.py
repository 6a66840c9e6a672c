"""The error of a unit's outputs: normalized, weighted, and joined over the drawn widths by the loss (PTMQ §1.8).

Reduction: sum of squares over channels, mean over everything else (QDrop's). Under the norm "token" both outputs are
normalized over channels first, so that a token counts alike whatever its size (§9.3). With a weight every square is
multiplied by how much the logits mind it (`reconstruct.importance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from ptmq_lightning.reconstruction.importance import TOKENS, WEIGHTS, ErrorWeight
from ptmq_lightning.reconstruction.losses import LOSSES, NORMS, LossKeys
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.layout import channels_last, rows


class Objective:
    """What a fit minimizes, but for the rounding's regularizer.

    Args:
        keys: of the loss.
        mixture: weights of gd_figure's mixture, low to high.
        attention: whether blocks of a network with attention are fitted: then the norm "auto" is "token", as what
            reads such a block is a LayerNorm, which does not see a token's scale.
        p: of the error |d|^p, 2 for squares.

    Raises:
        ConfigError: an unknown name, or a weight under a norm.
    """

    def __init__(
        self,
        keys: LossKeys,
        *,
        mixture: Sequence[float] = (0.4, 0.3, 0.3),
        attention: bool = False,
        p: float = 2.0,
    ) -> None:
        if keys.norm not in NORMS:
            raise ConfigError(f"found loss.norm={keys.norm!r}; expected one of {', '.join(NORMS)}.")
        weight, tokens = WEIGHTS[keys.weight](), TOKENS[keys.tokens]()
        self.keys, self.p, self.loss = keys, p, LOSSES[keys.name](keys, mixture)
        self.normed = keys.norm == "token" or (keys.norm == "auto" and attention and not weight.of_features)
        if self.normed and weight.of_features:
            raise ConfigError(
                f"found loss.weight={keys.weight} with loss.norm={keys.norm}; expected loss.norm=none or auto: the "
                "weight is one of features as they are."
            )
        self.error_weight: ErrorWeight = tokens if self.normed else weight

    def __call__(
        self,
        outputs: Sequence[Tensor],
        target: Tensor,
        channel: int,
        weight: Tensor | None = None,
        units: Sequence[float] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss and each width's own distance to the target.

        Args:
            outputs: low to high, each of the target's shape (B, ...).
            target: the float output (B, ...).
            channel: dimension of the channels.
            weight: of the squared errors, (B, ...) or (1, ...).
            units: of the distances, one for each output; those between two outputs are in the lowest one's.
        """
        outputs = [self._normed(output, channel) for output in outputs]
        target = self._normed(target, channel)
        far = partial(distance, channel=channel, weight=weight, p=self.p)
        own = [far(output, target) for output in outputs]
        if units is None:
            return self.loss(outputs, target, own, far), own
        own = [error / unit for error, unit in zip(own, units, strict=True)]
        return self.loss(outputs, target, own, lambda x, y: far(x, y) / units[0]), own

    def _normed(self, x: Tensor, channel: int) -> Tensor:
        if not self.normed or x.dim() < 3:  # logits (B, classes) stay as they are
            return x
        moved = x.movedim(channel, -1)
        return F.layer_norm(moved, moved.shape[-1:]).movedim(-1, channel)


def distance(x: Tensor, y: Tensor, channel: int, weight: Tensor | None = None, p: float = 2.0) -> Tensor:
    """mean over all but channels of sum over channels of weight * |x - y|^p; a scalar (PTMQ §4, mse)."""
    if weight is None and p == 2:
        last = channels_last(x)  # the gradient of F.mse_loss is laid out in the order of the dimensions, whatever x is
        return F.mse_loss(rows(x, last=last), rows(y, last=last)) * x.shape[channel]
    error = (x - y).square() if p == 2 else (x - y).abs().pow(p)
    return (error if weight is None else error * weight).mean() * x.shape[channel]
