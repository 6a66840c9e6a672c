"""The losses: how the outputs at the drawn widths are held against the float output, and against each other.

Source: PTMQ §1.8 (gd_figure as its Figure 1 draws it, gd_direct and gd_chain as its text can be read), §4 (mse).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmq_lightning.reconstruction.importance import TOKENS, WEIGHTS
from ptmq_lightning.reconstruction.mixer import weighted
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.registry import Registry

LOSSES: Registry[type[Loss]] = Registry("loss")
NORMS = ("none", "token", "auto")

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class LossKeys:
    """What a unit's outputs are held against."""

    name: str = key("gd_figure", "how the drawn widths' errors are joined", choices=LOSSES.names)
    weight: str = key("none", "of every squared error", choices=WEIGHTS.names)
    norm: str = key("auto", "of outputs; auto: token where there is attention and no weight", choices=NORMS)
    tokens: str = key("fisher", "under the norm token: how much each token counts", choices=TOKENS.names)
    gammas: list[float] = key(factory=lambda: [1.0, 1.0, 1.0], help="gd_figure: weights of its terms")
    chain_k: float = key(0.5, "gd_chain: share of the next wider width's guidance", least=0, most=1)
    stop_gradient: bool = key(False, "gd_figure: on the widest width's output")
    relative: bool = key(False, "each width's error in units of nearest rounding's in the same block")

    def __post_init__(self) -> None:
        if not self.gammas:
            raise ConfigError("found loss.gammas=[]; expected at least one, the mixture's: loss.gammas=[1]")


class Loss(ABC):
    """One way to join the errors of the drawn widths. Variants join by `@LOSSES.register(name)`.

    Args:
        keys: of the loss.
        mixture: weights of the outputs' mixture, low to high: the mixer's.
    """

    def __init__(self, keys: LossKeys, mixture: Sequence[float]) -> None:
        self.keys, self.mixture = keys, mixture

    @abstractmethod
    def __call__(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        """The loss, a scalar.

        Args:
            outputs: at the drawn widths, low to high, each of the target's shape (B, ...).
            target: the float output (B, ...).
            own: each output's distance to the target, a scalar.
            far: the distance of two outputs.
        """


@LOSSES.register("gd_figure")
class GDFigure(Loss):
    """The outputs' mixture against the target, the highest width against each other one, weights gammas."""

    def __call__(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        gammas = [self.keys.gammas[min(i, len(self.keys.gammas) - 1)] for i in range(len(outputs))]
        high = outputs[-1].detach() if self.keys.stop_gradient else outputs[-1]
        loss = gammas[0] * far(weighted(outputs, self.mixture), target)
        for gamma, output in zip(gammas[1:], reversed(outputs[:-1]), strict=True):
            loss = loss + gamma * far(high, output)
        return loss


@LOSSES.register("gd_direct")
class GDDirect(Loss):
    """Every width against the target."""

    def __call__(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        return torch.stack(own).sum()


@LOSSES.register("gd_chain")
class GDChain(Loss):
    """The highest width against the target; the lower ones also, by the share k, against the next higher one."""

    def __call__(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        k, loss = self.keys.chain_k, own[-1]
        for lower, teacher, to_target in zip(outputs[:-1], outputs[1:], own[:-1], strict=True):
            guided = far(lower, teacher.detach())  # the teacher is not pulled towards its pupil
            loss = loss + (1 - k) * to_target + k * guided
        return loss


@LOSSES.register("mse")
class MSE(Loss):
    """The mean of the widths' errors."""

    def __call__(self, outputs: Sequence[Tensor], target: Tensor, own: list[Tensor], far: Distance) -> Tensor:
        return torch.stack(own).mean()
