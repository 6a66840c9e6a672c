"""One block's (or layer's) reconstruction as a LightningModule: PTMQ's inner loop (§1.5 to §1.9).

Each step draws one width per group, mixes an input for each, runs the block at each with soft rounding, and pulls the
outputs to the float block's. Only the rounding variables, the drawn widths' activation steps and, where asked for,
their weight steps receive gradients; Adam leaves alone what has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from ptmq_lightning.quant import rounding as soft
from ptmq_lightning.quant.layers import LearnedWeight, MaskBank, TrainableActivation
from ptmq_lightning.reconstruct.features import FeatureBatch
from ptmq_lightning.reconstruct.mixer import Mixer
from ptmq_lightning.reconstruct.objective import Objective
from ptmq_lightning.runtime.model import LayerInfo, quantizers_of, select, weights_of
from ptmq_lightning.runtime.spec import BitGroups, BitWidth


@dataclass(frozen=True)
class Settings:
    """Of every unit's fit. lr_*: Adam's rates for V, log activation steps, log weight steps (0: not learned);
    lambda_rounding: weight of the regularizer; drop: share of elements that activation quantizers pass unquantized."""

    iters: int = 500
    batch: int = 32
    lr_rounding: float = 1e-2
    lr_activation: float = 1e-3
    lr_weight_step_size: float = 1e-3
    lambda_rounding: float = 0.01
    warmup: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    drop: float = 0.5
    log_every: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Place:
    """Which unit of how many; offset: steps of the units before it."""

    index: int
    count: int
    name: str
    offset: int


class BlockReconstruction(L.LightningModule):
    """block: a block or a layer with its activation function, with trainable layers. layers: its rows of the layer
    table. channel: the output's channel dimension. quantize_inputs: False leaves all activations in float (AdaRound,
    BRECQ)."""

    def __init__(
        self,
        block: nn.Module,
        layers: dict[str, LayerInfo],
        *,
        groups: BitGroups,
        mixer: Mixer,
        objective: Objective,
        settings: Settings,
        masks: MaskBank,
        channel: int,
        rows: Tensor | None,
        place: Place,
        quantize_inputs: bool = True,
    ) -> None:
        super().__init__()
        self.block, self.layers, self.groups, self.mixer = block, layers, groups, mixer
        self.objective, self.settings, self.masks, self.place = objective, settings, masks, place
        self.channel, self.read_tokens, self.quantize_inputs = channel, rows, quantize_inputs
        self.weights = [w for _, w in weights_of(block) if isinstance(w, LearnedWeight)]
        self.activations = [q for _, q in quantizers_of(block) if isinstance(q, TrainableActivation)]
        self.beta = soft.BetaSchedule(settings.iters, settings.warmup, settings.beta_start, settings.beta_end)
        self.draws = torch.Generator().manual_seed(settings.seed * 1_000_003 + place.index)
        self.fixed = all(layer.pinned for layer in layers.values())  # the drawn width changes nothing but the input
        self.latest: dict[str, float] = {}

    def training_step(self, batch: FeatureBatch, index: int) -> Tensor:
        drawn = self.draw()
        inputs = self.mixer.inputs(batch.fp, batch, drawn, self.masks, self.draws)
        if self.fixed:  # the widths differ in their inputs alone: learn from one of them
            pick = int(torch.randint(len(drawn), (), generator=self.draws))
            drawn, inputs = [drawn[pick]], [inputs[pick]]
        outputs = [self.at(width, x) for width, x in zip(drawn, inputs, strict=True)]
        target, weight = batch.target, batch.weight
        if self.read_tokens is not None:  # (B, T, C) -> (B, T', C): the tokens that the rest of the network reads
            outputs, target = [o[:, self.read_tokens] for o in outputs], target[:, self.read_tokens]
            weight = None if weight is None else weight[:, self.read_tokens]
        reconstruction, own = self.objective(outputs, target, self.channel, weight)
        rounding = target.new_zeros(())
        if self.beta.active(index):  # PTMQ §1.5
            rounding = sum((w.regularizer({b.w for b in drawn}, self.beta(index)) for w in self.weights), rounding)
        if index % self.settings.log_every == 0 or index == self.settings.iters - 1:
            self.report(index, drawn, own, rounding)
        return reconstruction + self.settings.lambda_rounding * rounding

    def draw(self) -> list[BitWidth]:
        """One width of each group, low to high."""
        return [g[int(torch.randint(len(g), (), generator=self.draws))] for g in self.groups.groups]

    def at(self, width: BitWidth, x: Tensor) -> Tensor:
        """The block at a width with soft rounding; x (B, ...)."""
        widths = {name: layer.width(width) for name, layer in self.layers.items()}
        select(self.block, widths, activations=self.quantize_inputs)
        output: Tensor = self.block(x)
        return output

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Adam; the rounding at a constant rate, steps on a cosine to 0 (PTMQ §1.5)."""
        groups = [group for group in self.groups_of_parameters() if group[0]]
        optimizer = torch.optim.Adam([{"params": params, "lr": rate} for params, rate, _ in groups], fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [factor for _, _, factor in groups])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def groups_of_parameters(self) -> list[tuple[list[nn.Parameter], float, Callable[[int], float]]]:
        """What is learned: parameters, rate and its factor over the steps, for rounding, activation and weight
        steps."""
        s, cosine = self.settings, _cosine(self.settings.iters)
        learned = [q for q in self.activations if self.quantize_inputs]
        rate = s.lr_rounding * next((w.how.rate for w in self.weights), 1.0)
        return [
            ([p for weight in self.weights for p in weight.learned()], rate, _constant),
            ([p for q in learned for p in q.log_step.values() if p.requires_grad], s.lr_activation, cosine),
            ([p for weight in self.weights for p in weight.log_gain.values()], s.lr_weight_step_size, cosine),
        ]

    @torch.no_grad()
    def report(self, index: int, drawn: list[BitWidth], own: list[Tensor], rounding: Tensor) -> None:
        """Losses of this step to the loggers, against the step that only grows (`recon/step`)."""
        learned = {pair.w for pair in self.groups.pairs}
        h = [h for weight in self.weights for h in weight.undecided(learned)]
        settled = sum(int(soft.settled(x)) for x in h) / max(sum(x.numel() for x in h), 1)
        self.latest = {f"loss/{width}": float(loss) for width, loss in zip(drawn, own, strict=True)}
        self.latest |= {"loss/rounding": float(rounding), "beta": self.beta(index), "settled": settled}
        step = self.place.offset + index
        where = {"recon/step": step, "block": self.place.index, "block_name": self.place.name}
        for logger in self.loggers:
            logger.log_metrics({**self.latest, **where}, step=step)  # type: ignore[dict-item]


def _constant(_step: int) -> float:
    return 1.0


def _cosine(steps: int) -> Callable[[int], float]:
    return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def channel_dim(block: nn.Module, output: Tensor) -> int:
    """The dimension of an output (B, ...) that holds channels: the one as long as the last layer's output, else the
    last (tokens, logits), or 1 for a feature map."""
    if output.dim() != 4:
        return output.dim() - 1
    widths = [len(weight.latent_step) for _, weight in weights_of(block)]
    last_is_channel = bool(widths) and output.shape[-1] == widths[-1] and output.shape[1] != widths[-1]
    return 3 if last_is_channel else 1


def tokens_read(following: nn.Module, x: Tensor) -> Tensor | None:
    """Rows of x (B, T, C) that the rest of the network depends on, or None where it reads all of them."""
    if x.dim() != 3:
        return None
    probe = x[:1].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        following(probe).square().sum().backward()
    assert probe.grad is not None
    read = probe.grad[0].abs().amax(dim=-1) > 0
    return None if bool(read.all()) else read.nonzero().flatten()
