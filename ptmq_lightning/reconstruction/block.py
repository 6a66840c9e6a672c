"""One unit's reconstruction as a LightningModule: PTMQ's inner loop (§1.5 to §1.9).

Each iteration draws one width per group, mixes an input for each, runs the unit at each with soft rounding, and pulls
the outputs to the float unit's. Only the rounding variables, the step sizes of the drawn widths' activations and, where
asked for, of their weights receive gradients; Adam leaves alone what has none.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ptmq_lightning.quant.layers import MaskBank, TrainableActivation
from ptmq_lightning.quant.rounding import BetaSchedule, settled
from ptmq_lightning.quant.roundings import LearnedWeight
from ptmq_lightning.quant.together import Asked, Softened, together
from ptmq_lightning.reconstruction.features import FeatureBatch
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.model import quantizers_of, select, weights_of
from ptmq_lightning.runtime.spec import BitWidth

if TYPE_CHECKING:
    from ptmq_lightning.reconstruction.fit import Fit


class BlockReconstruction(L.LightningModule):
    """The trainable unit of a fit; its layers were made trainable before."""

    def __init__(self, fit: Fit, weight: Tensor | None = None) -> None:
        super().__init__()
        self.held_out = fit.held_out_batch(weight)
        recipe, place, s = fit.recipe, fit.place, fit.recipe.schedule
        self.block, self.layers, self.recipe, self.place = fit.unit.module, fit.unit.layers, recipe, place
        self.channel, self.read, self.starts = fit.channel, fit.read, fit.starts
        self.named_weights = [(n, w) for n, w in weights_of(self.block) if isinstance(w, LearnedWeight)]
        self.weights = [w for _, w in self.named_weights]
        self.activations = [q for _, q in quantizers_of(self.block) if isinstance(q, TrainableActivation)]
        self.widths = {  # of every layer, where a pair is drawn
            pair: {name: layer.width(pair) for name, layer in self.layers.items()} for pair in recipe.groups.pairs
        }
        self.beta = BetaSchedule(s.iters, s.warmup, s.beta_start, s.beta_end)
        self.draws = place.generator()
        self.masks = MaskBank(place.unit_seed + 1, recipe.mixer.p, fit.target.device)  # + 1: not the inner drop's
        # Where every layer is pinned to its own width, the drawn widths differ in nothing but their inputs.
        self.pinned = all(layer.pinned for layer in self.layers.values())
        self.latest: dict[str, float] = {}

    def training_step(self, batch: FeatureBatch, index: int) -> Tensor | None:
        drawn = self.draw()  # K pairs, low to high
        inputs = self.recipe.mixer.inputs(batch.fp, batch, drawn, self.masks.like(batch.fp), self.draws)  # §1.7
        if self.pinned:  # K runs would compute nearly the same: learn from one of them
            pick = int(torch.randint(len(drawn), (), generator=self.draws))
            drawn, inputs = [drawn[pick]], [inputs[pick]]
        with together(*self.asked(drawn)) as soft:
            outputs = [self.read(self.at(width, x)) for width, x in zip(drawn, inputs, strict=True)]
        target, weight = self.read(batch.target), None if batch.weight is None else self.read(batch.weight)
        units = None if self.starts is None else [self.starts[width] for width in drawn]
        reconstruction, own = self.recipe.objective(outputs, target, self.channel, weight, units)  # §1.8
        rounding = self.regularizer(soft, index, target)  # §1.5
        loss = reconstruction + self.recipe.schedule.lambda_rounding * rounding
        told = index % self.recipe.schedule.log_every == 0 or index == self.recipe.schedule.iters - 1
        if told or not loss.is_cuda:  # a GPU would wait for the answer in every iteration
            self.require_finite(loss, index)
        if told:
            self.report(index, drawn, own, rounding)
        return loss if loss.requires_grad else None  # none: nothing is learned at the drawn widths

    @torch.no_grad()
    def held_out_error(self) -> float:
        """The mean over all widths of the unit's error on images that no iteration sees, nothing dropped."""
        held, pairs, errors = self.held_out, list(self.recipe.groups.pairs), list[Tensor]()
        assert held is not None
        weight, target = None if held.weight is None else self.read(held.weight), self.read(held.target)
        self.eval()
        with together(*self.asked(pairs)):
            for pair in pairs:
                output = self.read(self.at(pair, held.at(pair)))
                units = None if self.starts is None else [self.starts[pair]]
                errors += self.recipe.objective([output], target, self.channel, weight, units)[1]
        self.train()
        return float(torch.stack(errors).mean())

    def require_finite(self, loss: Tensor, index: int) -> None:
        """Raises ModelError for a fit that diverged: what it would go on to learn is worth nothing."""
        if not bool(loss.isfinite()):
            s = self.recipe.schedule
            raise ModelError(
                f"the loss of {self.place.name} is {float(loss)} in iteration {index} of {s.iters}; expected a finite "
                f"number. Lower recon.lr_rounding ({s.rounding_rate():g}), recon.lr_activation ({s.lr_activation:g}) "
                f"or recon.lr_weight_step_size ({s.lr_weight_step_size:g}), or look for features that are not finite; "
                f"finished blocks are kept for resume=true."
            )

    def regularizer(self, soft: list[tuple[float, Softened]], index: int, like: Tensor) -> Tensor:
        """sum of 1 - |2h(V) - 1|^beta over the weights, none in the warmup: what is learned there is the error alone,
        and then every h is pulled to 0 or 1, so that rounding it away at the commit costs nothing (PTMQ §1.5)."""
        if not self.beta.active(index) or not soft:
            return like.new_zeros(())
        beta = like.new_full((), self.beta(index))
        penalties = [of.penalty(beta) if share == 1 else of.penalty(beta) * share for share, of in soft]
        return sum(penalties[1:], penalties[0])

    def asked(self, drawn: list[BitWidth]) -> tuple[Asked, Asked]:
        """The trainable layers, and the widths at which each runs where these are drawn."""
        chosen = [self.widths[pair] for pair in drawn]
        weights = [(w, sorted({widths[name].w for widths in chosen})) for name, w in self.named_weights]
        inputs = self.activations if self.recipe.quantize_inputs else []
        return weights, [(q, sorted({q.pin or widths[q.owner].a for widths in chosen})) for q in inputs]

    def draw(self) -> list[BitWidth]:
        """One width of each group, low to high."""
        return [g[int(torch.randint(len(g), (), generator=self.draws))] for g in self.recipe.groups.groups]

    def at(self, width: BitWidth, x: Tensor) -> Tensor:
        """The unit at a width with soft rounding; x (B, ...)."""
        select(self.block, self.widths[width], activations=self.recipe.quantize_inputs)
        output: Tensor = self.block(x)
        return output

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam; the rounding at a constant rate, step sizes on a cosine to 0 (PTMQ §1.5)."""
        groups = [group for group in self.groups_of_parameters() if group[0]]
        optimizer = torch.optim.Adam([{"params": params, "lr": rate} for params, rate, _ in groups], fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [factor for _, _, factor in groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return any(parameters for parameters, *_ in self.groups_of_parameters())

    def groups_of_parameters(self) -> list[tuple[list[nn.Parameter], float, Callable[[int], float]]]:
        """What is learned: parameters, rate and its factor over the iterations, for the rounding and for the step sizes
        of activations and weights."""
        s, falling = self.recipe.schedule, cosine(self.recipe.schedule.iters)
        inputs = self.activations if self.recipe.quantize_inputs else []
        roundings: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, weight in self.named_weights:
            for parameter, widths in zip(weight.learned(), weight.read_by(), strict=True):
                roundings[self.share(name, widths)].append(parameter)
        factor = self.recipe.rounding.rate
        return [
            *((found, s.rounding_rate(share) * factor, _constant) for share, found in roundings.items()),
            ([p for q in inputs for p in q.log_step.values() if p.requires_grad], s.lr_activation, falling),
            ([p for weight in self.weights for p in weight.log_gain.values()], s.lr_weight_step_size, falling),
        ]

    def share(self, layer: str, widths: Collection[int]) -> float:
        """Of the iterations, those that draw a pair at which the layer runs at one of these weight widths."""
        missed = (
            statistics.mean(self.widths[pair][layer].w not in widths for pair in group)
            for group in self.recipe.groups.groups
        )
        return 1 - math.prod(missed)

    @torch.no_grad()
    def report(self, index: int, drawn: list[BitWidth], own: list[Tensor], rounding: Tensor) -> None:
        """Losses of this iteration to the loggers, against the run's iterations (`iter`)."""
        learned = {pair.w for pair in self.recipe.groups.pairs}
        h = [h for weight in self.weights for h in weight.undecided(learned)]
        share = sum(int(settled(x)) for x in h) / max(sum(x.numel() for x in h), 1)
        self.latest = {f"loss/{width}": float(loss) for width, loss in zip(drawn, own, strict=True)}
        self.latest |= {"loss/rounding": float(rounding), "beta": self.beta(index), "settled": share}
        step = self.place.iteration(index)
        where = {"iter": step, "block": self.place.index, "block_name": self.place.name}
        for logger in self.loggers:
            logger.log_metrics({**self.latest, **where}, step=step)  # type: ignore[dict-item]


def _constant(_index: int) -> float:
    return 1.0


def cosine(iters: int) -> Callable[[int], float]:
    """A factor of a rate by the iteration: from 1 to 0."""
    return lambda index: 0.5 * (1 + math.cos(math.pi * min(index, iters) / iters))
