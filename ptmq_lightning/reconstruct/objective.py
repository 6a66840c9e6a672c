"""What a block's outputs at the drawn widths are held against: the float output, and each other (PTMQ §1.8).

Reduction: sum of squares over channels, mean over everything else (QDrop's). norm "token": both outputs are normalized
over channels first, so that each token counts alike, whatever its size (§9.3). With a weight every square is
multiplied by how much the logits mind it (`reconstruct.importance`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmq_lightning.reconstruct.importance import WEIGHTS
from ptmq_lightning.reconstruct.mixer import group_weights
from ptmq_lightning.runtime.errors import ConfigError

FORMS = ("gd_figure", "gd_direct", "gd_chain", "mse")
NORMS = ("none", "token")
TOKENS = ("fisher", "even")

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """gd_figure: the drawn mixture against the target, the highest width against each other one, weights gammas.
    gd_direct: every width against the target. gd_chain: lower widths also against the next higher one, share k.
    mse: mean of gd_direct's terms. mixture: lambda of gd_figure's mixture, low to high; empty: 0.4 on the lowest.
    weight: of every squared error, "none", "fim" or "aph"; it counts features as they are, hence without a norm.
    tokens: under the norm "token", "fisher" weighs tokens by what the logits mind, "even" counts each alike.
    p: of the error |d|^p, 2 for squares.
    """

    form: str = "gd_figure"
    norm: str = "none"
    gammas: tuple[float, ...] = (1.0, 1.0, 1.0)
    chain_k: float = 0.5
    stop_gradient: bool = False
    mixture: tuple[float, ...] = (0.4, 0.3, 0.3)
    weight: str = "none"
    tokens: str = "fisher"
    p: float = 2.0

    def __post_init__(self) -> None:
        if self.form not in FORMS or self.norm not in NORMS:
            raise ConfigError(
                f"found loss form {self.form!r} with norm {self.norm!r}; expected a form of {', '.join(FORMS)} and a "
                f"norm of {', '.join(NORMS)}."
            )
        if not self.gammas:
            raise ConfigError("found no loss gammas; expected at least one, the mixture's: loss.gammas=[1]")
        if self.weight not in WEIGHTS:
            raise ConfigError(f"found loss weight {self.weight!r}; expected one of {', '.join(WEIGHTS)}.")
        if self.tokens not in TOKENS:
            raise ConfigError(f"found loss tokens {self.tokens!r}; expected one of {', '.join(TOKENS)}.")
        if self.weight != "none" and self.norm != "none":
            raise ConfigError(
                f"found loss weight {self.weight!r} with norm {self.norm!r}; expected norm 'none': the weight is "
                f"one of features as they are. Set loss.norm=none or auto."
            )

    def __call__(
        self, outputs: Sequence[Tensor], target: Tensor, channel: int, weight: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss and each width's own distance to the target. outputs: low to high, each the target's shape (B, ...);
        weight (B, ...) or (1, ...)."""
        outputs = [self._normed(output, channel) for output in outputs]
        target = self._normed(target, channel)
        far = partial(distance, channel=channel, weight=weight, p=self.p)
        own = [far(output, target) for output in outputs]
        return getattr(self, f"_{self.form}")(outputs, target, own, far), own

    def _normed(self, x: Tensor, channel: int) -> Tensor:
        if self.norm == "none" or x.dim() < 3:
            return x
        moved = x.movedim(channel, -1)
        return F.layer_norm(moved, moved.shape[-1:]).movedim(-1, channel)

    def _mse(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        return torch.stack(own).mean()

    def _gd_direct(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        return torch.stack(own).sum()

    def _gd_figure(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        n = len(outputs)
        weights = group_weights(self.mixture, n)
        gammas = [self.gammas[min(i, len(self.gammas) - 1)] for i in range(n)]
        mixed = torch.stack([w * o for w, o in zip(weights, outputs, strict=True)]).sum(0)
        high = outputs[-1].detach() if self.stop_gradient else outputs[-1]
        loss = gammas[0] * far(mixed, target)
        for gamma, output in zip(gammas[1:], reversed(outputs[:-1]), strict=True):
            loss = loss + gamma * far(high, output)
        return loss

    def _gd_chain(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        loss = own[-1]
        for lower, teacher, to_target in zip(outputs[:-1], outputs[1:], own[:-1], strict=True):
            guided = far(lower, teacher.detach())
            loss = loss + (1 - self.chain_k) * to_target + self.chain_k * guided
        return loss


def distance(x: Tensor, y: Tensor, channel: int, weight: Tensor | None = None, p: float = 2.0) -> Tensor:
    """mean over all but channels of sum over channels of weight * |x - y|^p; a scalar (PTMQ §4, mse)."""
    if weight is None and p == 2:
        return F.mse_loss(x, y) * x.shape[channel]
    error = (x - y).square() if p == 2 else (x - y).abs().pow(p)
    return (error if weight is None else error * weight).mean() * x.shape[channel]
