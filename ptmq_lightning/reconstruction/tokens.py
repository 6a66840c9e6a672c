"""Which tokens of a block's output the network reads, and how much its logits mind each: all blocks in one backward.

What is ours: the weight. Under the norm "token" each of T tokens would count 1/T of the loss, the class token too,
although in the later blocks nearly all of the logits' Fisher information lies in it (ViT-Tiny: 11 % behind the stem,
95 % behind block 10): its error then grows above nearest rounding's while the mean falls.
Both depend on the float network alone, so one pass before the first fit serves every block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq_lightning.runtime.gradients import block_gradients

TOKEN_IMAGES = 32  # calibration images that tell how much each token matters
EVENLY = 0.5  # share of all weight that is spread over the tokens that are read at all


@dataclass(frozen=True)
class Tokens:
    """Of one block's output (N, T, C); of another shape both are None.

    Attributes:
        read: the tokens that the rest of the network depends on; None: all.
        weight: (1, T, 1) of the squared errors of normalized tokens, their mean over the tokens that are read is 1;
            None: they count alike.
    """

    read: Tensor | None = None
    weight: Tensor | None = None


def look_at_tokens(
    blocks: Iterable[nn.Module], images: Tensor, generator: torch.Generator, *, weigh: bool = True
) -> list[Tokens]:
    """Of the output of every block of a float network.

    Args:
        images: calibration images (N, C, H, W).
        generator: draws the labels.
        weigh: whether the weights are asked for.
    """
    blocks = list(blocks)
    probed = block_gradients(blocks, images[:1], lambda logits: logits.square().sum())
    read = [gradient[0].abs().amax(dim=-1) > 0 if z.dim() == 3 else None for z, gradient in probed]
    weights: list[Tensor | None] = [None] * len(blocks)
    if weigh and any(tokens is not None for tokens in read):
        scored = block_gradients(blocks, images[:TOKEN_IMAGES], lambda logits: _log_likelihood(logits, generator))
        weights = [token_weight(z, gradient) for z, gradient in scored]
    return [Tokens(_places(tokens), weight) for tokens, weight in zip(read, weights, strict=True)]


def token_weight(output: Tensor, gradient: Tensor) -> Tensor | None:
    """Weights (1, T, 1) of an output's tokens from the gradient of the log-likelihood at it, both (B, T, C), else None.

    A token's share of the Fisher information: its squared gradient in units of its standard deviation. A share EVENLY
    of all weight is spread over the tokens that are read at all; a token that nothing reads has no weight.
    """
    if output.dim() != 3:
        return None
    information = (gradient.square().sum(-1) * output.var(-1)).mean(0)  # (T,)
    read = (information > 0).to(output.dtype)
    if not read.any():
        return None
    weight = EVENLY * read / read.sum() + (1 - EVENLY) * information / information.sum()
    return (weight * read.sum()).reshape(1, -1, 1)


def _log_likelihood(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The sum over images of log softmax(logits)[y], y drawn from the softmax: its squared gradient is Fisher's."""
    logits = F.log_softmax(logits, dim=-1)  # (B, classes)
    drawn = torch.multinomial(logits.detach().exp().cpu(), 1, generator=generator).to(logits.device)
    return logits.gather(1, drawn).sum()


def _places(read: Tensor | None) -> Tensor | None:
    """None for all of them; behind a head that is still zero none would be read, and all count."""
    return None if read is None or bool(read.all()) or not bool(read.any()) else read.nonzero().flatten()
