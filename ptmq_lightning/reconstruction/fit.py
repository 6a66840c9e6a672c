"""The fit of one unit from top to bottom: weigh the errors, make trainable, learn, commit (PTMQ §1.9).

N calibration images.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ptmq_lightning.quant.layers import MaskBank
from ptmq_lightning.reconstruction.block import BlockReconstruction
from ptmq_lightning.reconstruction.commit import commit, make_trainable
from ptmq_lightning.reconstruction.correction import correct_biases, mean_inputs, means_kept
from ptmq_lightning.reconstruction.features import FeatureBatch, Features, loader, map_batches
from ptmq_lightning.reconstruction.patience import Patience
from ptmq_lightning.reconstruction.place import Place
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.store import Kept
from ptmq_lightning.reconstruction.tokens import Tokens
from ptmq_lightning.reconstruction.units import Unit
from ptmq_lightning.runtime.model import select, weights_of
from ptmq_lightning.runtime.spec import BitWidth

NewTrainer = Callable[[], L.Trainer]
NO_TOKENS = Tokens()
START_IMAGES = 128  # calibration images that tell the error of nearest rounding
HELD_OUT, MOST_HELD_OUT = 8, 64  # under recon.patience: one image in so many, and no more than that


class Fit:
    """All that one unit's fit knows: a block's and a layer's alike.

    Args:
        recipe: of the pass.
        unit: what is fitted.
        inputs: float features and streams (N, ...) at the unit's input.
        target: the unit's float output (N, ...).
        block_input: the block's float input (N, ...).
        place: of the unit in the run.
        tokens: of the block's output.
    """

    def __init__(
        self,
        recipe: Recipe,
        unit: Unit,
        inputs: Features,
        target: Kept,
        block_input: Kept,
        place: Place,
        tokens: Tokens = NO_TOKENS,
    ) -> None:
        self.recipe, self.unit, self.place = recipe, unit, place
        self.inputs, self.target = inputs, target
        self.batch = recipe.schedule.batch
        self.channel = channel_dim(unit.module, target)
        self.starts: dict[BitWidth, float] | None = None  # each width's error at nearest rounding
        # A class token is all that the head reads: errors of the other tokens must not count.
        self.tokens = tokens if unit.whole else NO_TOKENS
        # Behind a layer the rest of its block needs the block's input too, for the shortcut.
        self.beside = () if unit.whole else (block_input,)

    def run(self, new_trainer: NewTrainer) -> dict[str, float]:
        """Fit and commit the unit; the last logged losses, none where nothing is learned."""
        # The weights come first: they are of the unit as it was calibrated, not of what is being learned.
        weight = self.recipe.objective.error_weight(self)
        if self.recipe.objective.keys.relative:
            self.starts = self.nearest_errors(weight)
        losses = self.learn(weight, new_trainer)
        self.unit.settle()
        if self.recipe.bias_correction == "during":
            correct_biases(self.unit.module, self.inputs.fp, self.batch)
        return losses

    def learn(self, weight: Tensor | None, new_trainer: NewTrainer) -> dict[str, float]:
        """Learn the rounding and the step sizes, and freeze them; weight (N or 1, ...): of the squared errors."""
        drop, block = self.recipe.drop, self.unit.module
        masks = MaskBank(self.place.unit_seed, drop, self.target.device) if drop else None
        means = mean_inputs(block, self.inputs.fp, self.batch) if self.recipe.bias_correction == "during" else None
        make_trainable(block, self.recipe, masks)
        module = BlockReconstruction(self, weight)
        if module.learns:
            module.train()  # QDrop's inner drop is on in training mode alone
            with nullcontext() if means is None else means_kept(block, means):
                self.trainer(new_trainer).fit(module, self.batches(weight))
            module.to(self.target.device)  # the Trainer leaves it on the CPU
        block.eval()
        commit(block)
        losses = module.latest
        del module  # held in reference cycles, as its trainer is: memory would grow with every unit
        gc.collect()
        return losses

    def trainer(self, new_trainer: NewTrainer) -> L.Trainer:
        """One that ends early where the recipe says so."""
        trainer, s = new_trainer(), self.recipe.schedule
        if s.patience is not None and self.held_out:
            trainer.callbacks.append(Patience(s.patience, s.log_every))  # type: ignore[attr-defined]
        return trainer

    def batches(self, weight: Tensor | None) -> DataLoader[FeatureBatch]:
        """The images of every iteration."""
        s, seed = self.recipe.schedule, self.place.unit_seed
        seen = len(self.target) - self.held_out
        return loader(self.inputs, self.target, batch=s.batch, iters=s.iters, seed=seed, weight=weight, seen=seen)

    @property
    def held_out(self) -> int:
        """How many of the last images no iteration sees: those that tell whether to end early."""
        return 0 if self.recipe.schedule.patience is None else min(MOST_HELD_OUT, len(self.target) // HELD_OUT)

    def held_out_batch(self, weight: Tensor | None) -> FeatureBatch | None:
        """Those images; None where there are none."""
        count, images = self.held_out, len(self.target)
        chosen = torch.arange(images - count, images, device=self.target.device)
        return FeatureBatch(self.inputs, self.target, chosen, weight) if count else None

    def narrowest_output(self) -> Tensor:
        """The unit's output (N, ...) at the narrowest width, rounded to nearest, from its own quantized features (from
        float ones where the mixer keeps no others)."""
        x = next(iter(self.inputs.streams.values()), self.inputs.fp)
        return self.nearest_output(self.recipe.groups.pairs[0], x)

    def nearest_output(self, pair: BitWidth, x: Kept) -> Tensor:
        """The unit's output at a width before it is made trainable, rounded to nearest; x (N, ...)."""
        widths = {name: layer.width(pair) for name, layer in self.unit.layers.items()}
        select(self.unit.module, widths, activations=self.recipe.quantize_inputs)
        output = map_batches(self.unit.module, x, self.batch)
        select(self.unit.module, None)
        return output

    @torch.no_grad()
    def nearest_errors(self, weight: Tensor | None) -> dict[BitWidth, float]:
        """Each width's error with nearest rounding on a few images, from its own quantized features (from float ones
        where the mixer keeps none of a single width): the units of a relative loss.

        In them the 8-bit error, a thousandth of the 2-bit one, counts like it, and lambda means the same in every
        network: squared errors of features differ by a factor of a thousand from one to the next.
        """
        target = self.read(self.target[:START_IMAGES])
        weight = None if weight is None else self.read(weight[:START_IMAGES])
        errors = {}
        for pair in self.recipe.groups.pairs:
            x = self.inputs.streams.get(pair, self.inputs.fp)[:START_IMAGES]
            output = self.read(self.nearest_output(pair, x))
            errors[pair] = float(self.recipe.objective([output], target, self.channel, weight)[1][0]) or 1.0
        return errors

    def read(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T', C): the tokens that the rest of the network reads; all where it reads all."""
        return x if self.tokens.read is None else x[:, self.tokens.read]


def channel_dim(block: nn.Module, output: Kept) -> int:
    """The dimension of an output (B, ...) that holds channels: the one as long as the last layer's output, else the
    last (tokens, logits), or 1 for a feature map."""
    if len(output.shape) != 4:
        return len(output.shape) - 1
    widths = [len(weight.latent_step) for _, weight in weights_of(block)]
    last_is_channel = bool(widths) and output.shape[-1] == widths[-1] and output.shape[1] != widths[-1]
    return 3 if last_is_channel else 1
