"""The quick measure of how much one layer's width hurts: the change of its block's output along what the logits mind.

Source: PTMQ §5's divergence to the second order, KL(softmax f || softmax f') = 1/2 d^T F d for a small change d of a
feature, F Fisher's information. Of each image one draw is taken, v of random signs: F = E[g g^T] for g the gradient of
v^T S f, S = diag(sqrt(p)) - sqrt(p) p^T and p = softmax f (a drawn label would do too, but rarely says anything of an
image that the network is sure of). So an image's harm is 1/2 (g^T d)^2.
What we do otherwise: the gradients of all blocks come from one backward over the float network, and the change is that
of the layer alone, between two runs of its block from float features: the time does not grow with what lies behind the
block. benchmarks/results/sensitivity.md tells how near it is; at 2 bits on a convolutional network, where changes are
not small, it is furthest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from ptmq_lightning.allocate.sensitivity import MEASURES, Sensitivity, base_of, free_layers, non_increasing
from ptmq_lightning.runtime.gradients import block_gradients
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

log = logging.getLogger(__name__)


@MEASURES.register("fisher")
def fisher_sensitivity(
    model: MultiBitModel,
    images: Tensor,
    pairs: Sequence[BitWidth],
    *,
    batch: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """What `sensitivity.layer_sensitivity` estimates, less the divergence that all layers at the widest pair cause.

    Args:
        model: calibrated; its current selection is the same afterwards.
        images: (N, 3, H, W).
        pairs: the pairs to measure; the widest is what the other layers run at.
        batch: images at a time.
        progress: called with (layers done, layers).
    """
    free, base = free_layers(model), base_of(model, pairs)
    log.info("sensitivity of %d layers at %d pairs, by the error of their blocks", len(free), len(pairs))
    gradients, inputs = _float_pass(model, images, batch)
    result: Sensitivity = {}
    for index, block in enumerate(model.blocks):
        measured = _Block(model, block, inputs[index], gradients[index], base)
        for name in (name for name in free if model.layers[name].block == index):
            result[name] = non_increasing({pair: measured.harm(name, pair) for pair in pairs})
            if progress is not None:
                progress(len(result), len(free))
    return result


def _float_pass(model: MultiBitModel, images: Tensor, batch: int) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Gradients at the output, and the input (B, ...), of every block, in batches."""
    generator = torch.Generator().manual_seed(0)
    gradients: list[list[Tensor]] = [[] for _ in model.blocks]
    inputs: list[list[Tensor]] = [[] for _ in model.blocks]
    with passthrough(model):
        for x in images.split(batch):
            found = block_gradients(model.blocks, x, lambda logits: fisher_score(logits, generator))
            for index, (output, gradient) in enumerate(found):
                gradients[index].append(gradient)
                inputs[index].append(x)
                x = output
    return gradients, inputs


def fisher_score(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A score of logits (B, C) the outer product of whose gradient is on average Fisher's information, per image."""
    p = softmax(logits.detach(), dim=1)
    signs = torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1
    drawn = p.sqrt() * signs
    return ((drawn - p * drawn.sum(dim=1, keepdim=True)) * logits).sum()


class _Block:
    """A block whose layers are measured one by one."""

    def __init__(
        self,
        model: MultiBitModel,
        block: nn.Module,
        inputs: list[Tensor],
        gradients: list[Tensor],
        base: Mapping[str, BitWidth],
    ) -> None:
        self.model, self.block, self.inputs, self.gradients, self.base = model, block, inputs, gradients, base
        self.before = self._run({})

    def harm(self, name: str, pair: BitWidth) -> float:
        """Mean over images of 1/2 (g^T d)^2 with a layer at a pair."""
        own = self.model.layers[name].width(pair)
        if own == self.base[name]:
            return 0.0
        changes = zip(self._run({name: own}), self.before, self.gradients, strict=True)
        along = [(g * (after - before)).flatten(1).sum(dim=1, dtype=torch.float64) for after, before, g in changes]
        return 0.5 * float(torch.cat(along).square().mean())

    @torch.inference_mode()
    def _run(self, changed: Mapping[str, BitWidth]) -> list[Tensor]:
        with at_bits(self.model, BitAssignment(tuple({**self.base, **changed}.items()))):
            return [self.block(x) for x in self.inputs]
