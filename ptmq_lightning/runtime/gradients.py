"""What the logits mind of every block's output, by one backward over the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def block_gradients(
    blocks: Iterable[nn.Module], images: Tensor, score: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Each block's output (B, ...) and the gradient at it of a score of the logits.

    Only the features between blocks are held, and what a block made is made again on the way back: otherwise memory
    would grow with the depth of the network.
    """
    outputs: list[Tensor] = []
    with torch.enable_grad():
        x = images
        for block in blocks:
            x = checkpoint(block, x, use_reentrant=False) if outputs else block(x).detach().requires_grad_(True)
            outputs.append(x)
        gradients = torch.autograd.grad(score(x), outputs)
    return [(output.detach(), gradient) for output, gradient in zip(outputs, gradients, strict=True)]
