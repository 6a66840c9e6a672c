"""How much the logits mind an element of a unit's output: weights on its squared error (PTMQ §4, fim and aph; tokens).

Both come from KL(softmax(f / T) || softmax(f' / T)), f the float logits, f' those behind another output of the block;
no labels. That divergence has no gradient at the float output itself, so it is taken beside it:
fim (BRECQ's squared gradients): at the unit's output at the narrowest width, rounded to nearest and fed by its own
quantized features (APHQ-ViT's way of running BRECQ; by float features where the mixer keeps no others); one weight per
image and element.
aph (APHQ-ViT's perturbation Hessian): mean over images of |gradient at z + e - gradient at z - e|, e the same for every
element, a thousandth of the output's standard deviation (theirs, 1e-6, is within float32's noise).
What we do otherwise: a weight is scaled so that the loss is the channels' number times the weighted relative error, in
every block, whatever the size of gradients and features.
Tokens: `reconstruction.tokens`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ptmq_lightning.reconstruction.store import Kept
from ptmq_lightning.runtime.registry import Registry

if TYPE_CHECKING:
    from ptmq_lightning.reconstruction.fit import Fit

WEIGHTS: Registry[type[ErrorWeight]] = Registry("loss weight")
TOKENS: Registry[type[ErrorWeight]] = Registry("loss tokens")
TEMPERATURE = 20.0  # APHQ-ViT's
PERTURBATION = 1e-3  # of the output's standard deviation


class ErrorWeight(ABC):
    """How much each element of a unit's output counts. Variants join by `@WEIGHTS.register(name)`."""

    of_features: ClassVar[bool] = True  # it weighs features as they are: no norm may come before it
    of_tokens: ClassVar[bool] = False  # it needs `Tokens.weight`

    @abstractmethod
    def __call__(self, fit: Fit) -> Tensor | None:
        """The weights (N or 1, ...) of a unit's squared error, held while it is fitted; None: all are one."""


@WEIGHTS.register("none")
@TOKENS.register("even")
class Even(ErrorWeight):
    """Every element counts alike."""

    of_features = False

    def __call__(self, fit: Fit) -> Tensor | None:
        return None


@WEIGHTS.register("fim")
class FisherWeight(ErrorWeight):
    """BRECQ's squared gradients, for every image and element; see `fisher`."""

    def __call__(self, fit: Fit) -> Tensor:
        quantized = fit.narrowest_output()
        target = fit.target[:]
        weight = fisher(fit.unit.rest, target, quantized, fit.batch, *fit.beside)
        return scaled(weight, target, fit.tokens.read)


@WEIGHTS.register("aph")
class PerturbationWeight(ErrorWeight):
    """APHQ-ViT's perturbation Hessian, for every element; see `perturbation`."""

    def __call__(self, fit: Fit) -> Tensor:
        target = fit.target[:]
        weight = perturbation(fit.unit.rest, target, fit.batch, *fit.beside)
        return scaled(weight, target, fit.tokens.read)


@TOKENS.register("fisher")
class TokenWeight(ErrorWeight):
    """A token counts by what the logits mind of it; see `reconstruction.tokens`. Inside a block every token counts
    alike."""

    of_features, of_tokens = False, True

    def __call__(self, fit: Fit) -> Tensor | None:
        return fit.tokens.weight


def fisher(rest: nn.Module, target: Tensor, quantized: Tensor, batch: int, *beside: Kept) -> Tensor:
    """Squared gradients (N, ...) at `quantized`, the outputs (N, ...) whose float ones are `target`.

    rest: the float network behind these outputs. beside: what its first module takes besides, (N, ...).
    """
    weight = torch.empty_like(target)
    for rows in _batches(target, batch):
        own = [x[rows] for x in beside]
        expected = log_probabilities(rest, target[rows], *own)
        weight[rows] = divergence_gradient(rest, expected, quantized[rows], *own).square_()
    return weight


def perturbation(rest: nn.Module, target: Tensor, batch: int, *beside: Kept) -> Tensor:
    """Mean over images of the gradients' differences at outputs moved up and down, (1, ...) for target (N, ...); rest,
    beside: of `fisher`."""
    shift = PERTURBATION * target.std()
    weight = torch.zeros_like(target[:1])
    for rows in _batches(target, batch):
        z, own = target[rows], [x[rows] for x in beside]
        expected = log_probabilities(rest, z, *own)
        up, down = (divergence_gradient(rest, expected, z + e, *own) for e in (shift, -shift))
        weight += (up - down).abs_().sum(0, keepdim=True)
    return weight / len(target)


def _batches(x: Tensor, batch: int) -> Iterator[slice]:
    return (slice(first, first + batch) for first in range(0, len(x), batch))


@torch.no_grad()
def log_probabilities(rest: nn.Module, z: Tensor, *beside: Tensor) -> Tensor:
    """log softmax(rest(z) / T), float64 (B, classes): the difference of two that are nearly equal counts."""
    return F.log_softmax(recorded(rest, z, *beside).double() / TEMPERATURE, dim=-1)


def divergence_gradient(rest: nn.Module, expected: Tensor, z: Tensor, *beside: Tensor) -> Tensor:
    """d/dz of sum over images of KL(exp(expected) || softmax(rest(z) / T)), shape of z (B, ...).

    In full float32, and without a gradient left on any tensor of `rest`.
    """
    with torch.backends.cudnn.flags(allow_tf32=False), torch.enable_grad():
        z = z.detach().requires_grad_(True)
        found = F.log_softmax(recorded(rest, z, *beside).double() / TEMPERATURE, dim=-1)
        (gradient,) = torch.autograd.grad(F.kl_div(found, expected, reduction="sum", log_target=True), z)
    return gradient


def recorded(rest: nn.Module, x: Tensor, *beside: Tensor) -> Tensor:
    """rest(x) to take a gradient of; beside: what its first module takes besides. Of a chain only the features between
    its blocks are held, and what a block made is made again on the way back: otherwise memory would grow with the depth
    of the network."""
    for block in rest if isinstance(rest, nn.Sequential) else (rest,):
        x, beside = checkpoint(block, x, *beside, use_reentrant=False), ()
    return x


def scaled(weight: Tensor, target: Tensor, read: Tensor | None = None) -> Tensor:
    """The weight (N or 1, ...) over the weighted mean square of the target (N, ...): then a loss of C is an error as
    large as the target. read: the tokens that count, all where None."""
    w, t = (weight, target) if read is None else (weight[:, read], target[:, read])
    return weight / (w * t.square()).mean().clamp_min(torch.finfo(weight.dtype).tiny)
