"""Block by block through the network: cache, fit, commit, advance (PTMQ §1.9)."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor, nn

from ptmq_lightning.quant.layers import MaskBank
from ptmq_lightning.quant.rounding import Rounding
from ptmq_lightning.reconstruct.block import BlockReconstruction, Place, Settings, channel_dim, tokens_read
from ptmq_lightning.reconstruct.commit import commit, make_trainable
from ptmq_lightning.reconstruct.correction import correct_biases
from ptmq_lightning.reconstruct.features import Features, advance, loader, map_batches, run_float
from ptmq_lightning.reconstruct.importance import fisher, perturbation, scaled, token_weight
from ptmq_lightning.reconstruct.mixer import Mixer
from ptmq_lightning.reconstruct.objective import Objective
from ptmq_lightning.reconstruct.units import KINDS, Unit, units
from ptmq_lightning.runtime.errors import ConfigError, ModelError
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel, quantizers_of, select
from ptmq_lightning.runtime.spec import BitGroups

TOKEN_IMAGES = 32  # calibration images that tell how much each token matters


@dataclass(frozen=True)
class Recipe:
    """Everything one pass over the network is made of.

    unit: "block" or "layer" (`units`). quantize_inputs: False fits on quantized weights alone, in the unit and before
    it; activations stay in float. learn_inputs: False keeps the activation steps as they were calibrated.
    bias_correction: of every block, once it is committed.
    """

    groups: BitGroups
    mixer: Mixer
    objective: Objective
    rounding: Rounding
    settings: Settings
    learn_step_sizes: bool = False
    unit: str = "block"
    quantize_inputs: bool = True
    learn_inputs: bool = True
    bias_correction: bool = False

    def __post_init__(self) -> None:
        if self.unit not in KINDS:
            raise ConfigError(f"found the unit {self.unit!r}; expected one of {', '.join(KINDS)}.")

    def count(self, layers: Iterable[LayerInfo]) -> int:
        """Units among the layers of a number of blocks."""
        layers = list(layers)
        return sum(bool(layer.weights) for layer in layers) if self.unit == "layer" else len({i.block for i in layers})


@dataclass(frozen=True)
class BlockResult:
    """What one block's fit came to. losses: the last logged values, by name. iters: of the run so far."""

    name: str
    seconds: float
    losses: dict[str, float]
    iters: int = 0


def reconstruct_model(
    model: MultiBitModel,
    images: Tensor,
    recipe: Recipe,
    new_trainer: Callable[[], L.Trainer],
    *,
    from_block: int = 0,
    after_block: Callable[[int, BlockResult], None] = lambda index, result: None,
    before: tuple[int, int] = (0, 0),
) -> list[BlockResult]:
    """Learn rounding and steps of every block, in place, in the order of execution; images (N, C, H, W).

    new_trainer: a fresh Trainer per unit (a Trainer that has reached its end trains nothing again). from_block: blocks
    before it are committed already; their features are made again, which is exact, as every draw has its unit's seed.
    before: units and steps of earlier passes over the network.
    """
    _check_calibrated(model)
    features = Features(images, {key: images for key in recipe.mixer.streams(recipe.groups)})
    results: list[BlockResult] = []
    model.switch(None)
    count = before[0] + recipe.count(model.layers.values())
    for index, block in enumerate(model.blocks):
        layers = {name: layer for name, layer in model.layers.items() if layer.block == index}
        target = run_float(block, features.fp, recipe.settings.batch)
        done = recipe.count(layer for layer in model.layers.values() if layer.block < index)
        place = Place(before[0] + done, count, model.block_names[index], before[1] + done * recipe.settings.iters)
        if index >= from_block:
            rest = nn.Sequential(*list(model.blocks)[index + 1 :])
            results.append(_fit_block(block, layers, rest, features, target, recipe, place, index, new_trainer))
            if recipe.bias_correction:
                correct_biases(block, features.fp, recipe.settings.batch)
            after_block(index, results[-1])
        if index + 1 < len(model.blocks):
            features = _behind(block, layers, features, target, recipe, place)
    return results


def _behind(
    part: nn.Module, layers: dict[str, LayerInfo], features: Features, target: Tensor, recipe: Recipe, place: Place
) -> Features:
    """Features behind a finished block or part of one; target (N, ...): its float output."""
    return advance(
        part, layers, features, target, mixer=recipe.mixer, groups=recipe.groups, batch=recipe.settings.batch,
        generator=torch.Generator().manual_seed(recipe.settings.seed * 1_000_003 + place.index),
        activations=recipe.quantize_inputs,
    )  # fmt: skip


def _fit_block(
    block: nn.Module,
    layers: dict[str, LayerInfo],
    rest: nn.Sequential,
    features: Features,
    target: Tensor,
    recipe: Recipe,
    place: Place,
    index: int,
    new_trainer: Callable[[], L.Trainer],
) -> BlockResult:
    """Every unit of a block in turn; rest: the blocks behind it; place: of its first unit; index: its own."""
    started, batch = time.perf_counter(), recipe.settings.batch
    losses: dict[str, float] = {}
    for unit in units(block, place.name, recipe.unit):
        if unit.behind is None:
            read = tokens_read(rest, target)
            weight = _importance(block, layers, rest, features, target, read, recipe, index)
            losses = _fit(block, layers, features, target, read, weight, recipe, place, new_trainer)
        else:
            inputs = _inputs(unit, layers, features, recipe, place)
            own, aim = {unit.name: layers[unit.name]}, run_float(unit.module, inputs.fp, batch)
            behind, at = nn.Sequential(unit.behind, *rest), replace(place, name=unit.name)
            weight = _importance(unit.module, own, behind, inputs, aim, None, recipe, place.index, features.fp)
            losses = _fit(unit.module, own, inputs, aim, None, weight, recipe, at, new_trainer)
            unit.settle(block)
        place = replace(place, index=place.index + 1, offset=place.offset + recipe.settings.iters)
    return BlockResult(place.name, time.perf_counter() - started, losses, place.offset)


def _importance(
    part: nn.Module,
    layers: dict[str, LayerInfo],
    rest: nn.Module,
    features: Features,
    target: Tensor,
    read: Tensor | None,
    recipe: Recipe,
    index: int,
    *beside: Tensor,
) -> Tensor | None:
    """Weights of a unit's squared error (N or 1, ...), held while it is fitted; None where they are all one. beside:
    what the rest takes besides the unit's output: the input of the block that a layer lies in."""
    kind, batch = recipe.objective.weight, recipe.settings.batch
    if kind == "none":
        if beside or recipe.objective.norm == "none" or recipe.objective.tokens == "even":
            return None
        generator = torch.Generator().manual_seed(recipe.settings.seed * 1_000_003 + index)
        return token_weight(rest, target[:TOKEN_IMAGES], generator)
    if kind == "aph":
        return scaled(perturbation(rest, target, batch, *beside), target, read)
    widths = {name: layer.width(recipe.groups.pairs[0]) for name, layer in layers.items()}  # the narrowest
    select(part, widths, activations=recipe.quantize_inputs)
    quantized = map_batches(part, next(iter(features.streams.values()), features.fp), batch)
    select(part, None)
    return scaled(fisher(rest, target, quantized, batch, *beside), target, read)


def _inputs(unit: Unit, layers: dict[str, LayerInfo], features: Features, recipe: Recipe, place: Place) -> Features:
    """The block's features (N, ...) carried to the unit's input."""
    if unit.before is None:
        return features
    fp = run_float(unit.before, features.fp, recipe.settings.batch)
    return _behind(unit.before, layers, features, fp, recipe, place)


def _fit(
    block: nn.Module,
    layers: dict[str, LayerInfo],
    features: Features,
    target: Tensor,
    read: Tensor | None,
    weight: Tensor | None,
    recipe: Recipe,
    place: Place,
    new_trainer: Callable[[], L.Trainer],
) -> dict[str, float]:
    """One unit's fit and commit; the last losses, none where nothing is learned."""
    s = recipe.settings
    seed = s.seed * 1_000_003 + place.index
    drop = MaskBank(seed, s.drop, target.device) if s.drop else None
    channel = channel_dim(block, target)
    make_trainable(
        block,
        recipe.rounding,
        learn_step_sizes=recipe.learn_step_sizes,
        masks=drop,
        learn_activations=recipe.learn_inputs,
    )
    module = BlockReconstruction(
        block,
        layers,
        groups=recipe.groups,
        mixer=recipe.mixer,
        objective=recipe.objective,
        settings=s,
        masks=MaskBank(seed + 1, recipe.mixer.p, target.device),
        channel=channel,
        rows=read,
        place=place,
        quantize_inputs=recipe.quantize_inputs,
    )
    if any(parameters for parameters, *_ in module.groups_of_parameters()):
        module.train()
        new_trainer().fit(module, loader(features, target, batch=s.batch, iters=s.iters, seed=seed, weight=weight))
        module.to(target.device)  # the Trainer leaves it on the CPU
    block.eval()
    commit(block)
    losses = module.latest
    del module  # held in reference cycles, as its trainer is: memory would grow with every unit
    gc.collect()
    return losses


def _check_calibrated(model: MultiBitModel) -> None:
    for path, quantizer in quantizers_of(model):
        if not quantizer.calibrated:
            raise ModelError(
                f"the activation quantizer {path} has no step yet; expected a calibrated model. Call "
                f"quant.steps.calibrate with some images first."
            )
