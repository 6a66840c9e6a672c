"""Block by block through the network: cache, fit, commit, advance (PTMQ §1.9)."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

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
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel, quantizers_of, select
from ptmq_lightning.runtime.spec import BitGroups

TOKEN_IMAGES = 32  # calibration images that tell how much each token matters


@dataclass(frozen=True)
class Recipe:
    """Everything a reconstruction is made of. bias_correction: of every block, once it is committed."""

    groups: BitGroups
    mixer: Mixer
    objective: Objective
    rounding: Rounding
    settings: Settings
    learn_steps: bool = False
    bias_correction: bool = False


@dataclass(frozen=True)
class BlockResult:
    """What one block's fit came to. losses: the last logged values, by name."""

    name: str
    seconds: float
    losses: dict[str, float]


def reconstruct(
    model: MultiBitModel,
    images: Tensor,
    recipe: Recipe,
    new_trainer: Callable[[], L.Trainer],
    *,
    from_block: int = 0,
    after_block: Callable[[int, BlockResult], None] = lambda index, result: None,
) -> list[BlockResult]:
    """Learn rounding and steps of every block, in place, in the order of execution; images (N, C, H, W).

    new_trainer: a fresh Trainer per block (a Trainer that has reached its end trains nothing again). from_block: blocks
    before it are committed already; their features are made again, which is exact, as every draw has its block's seed.
    """
    _check_calibrated(model)
    features = Features(images, {key: images for key in recipe.mixer.streams(recipe.groups)})
    results: list[BlockResult] = []
    model.switch(None)
    for index, block in enumerate(model.blocks):
        layers = {name: layer for name, layer in model.layers.items() if layer.block == index}
        target = run_float(block, features.fp, recipe.settings.batch)
        if index >= from_block and recipe.rounding.kind != "nearest":
            started = time.perf_counter()
            place = Place(index, len(model.blocks), model.block_names[index], index * recipe.settings.steps)
            rest = nn.Sequential(*list(model.blocks)[index + 1 :])
            read = tokens_read(rest, target)
            weight = _importance(block, layers, rest, features, target, read, recipe, index)
            losses = _fit(block, layers, features, target, read, weight, recipe, place, new_trainer())
            if recipe.bias_correction:
                correct_biases(block, features.fp, recipe.settings.batch)
            results.append(BlockResult(place.name, time.perf_counter() - started, losses))
            after_block(index, results[-1])
        elif index >= from_block and recipe.bias_correction:
            correct_biases(block, features.fp, recipe.settings.batch)
        if index + 1 < len(model.blocks):
            features = advance(
                block, layers, features, target, mixer=recipe.mixer, groups=recipe.groups, batch=recipe.settings.batch,
                generator=torch.Generator().manual_seed(recipe.settings.seed * 1_000_003 + index),
            )  # fmt: skip
    return results


def _importance(
    block: nn.Module,
    layers: dict[str, LayerInfo],
    rest: nn.Module,
    features: Features,
    target: Tensor,
    read: Tensor | None,
    recipe: Recipe,
    index: int,
) -> Tensor | None:
    """Weights of the squared error (N or 1, ...), held while the block is fitted; None where they are all one."""
    kind, batch = recipe.objective.weight, recipe.settings.batch
    if kind == "none":
        if recipe.objective.norm == "none" or recipe.objective.tokens == "even":
            return None
        generator = torch.Generator().manual_seed(recipe.settings.seed * 1_000_003 + index)
        return token_weight(rest, target[:TOKEN_IMAGES], generator)
    if kind == "aph":
        return scaled(perturbation(rest, target, batch), target, read)
    narrowest = recipe.groups.pairs[0]
    select(block, {name: layer.width(narrowest) for name, layer in layers.items()})
    quantised = map_batches(block, next(iter(features.streams.values())), batch)
    select(block, None)
    return scaled(fisher(rest, target, quantised, batch), target, read)


def _fit(
    block: nn.Module,
    layers: dict[str, LayerInfo],
    features: Features,
    target: Tensor,
    read: Tensor | None,
    weight: Tensor | None,
    recipe: Recipe,
    place: Place,
    trainer: L.Trainer,
) -> dict[str, float]:
    """One block's fit and commit; the last losses."""
    s = recipe.settings
    seed = s.seed * 1_000_003 + place.index
    drop = MaskBank(seed, s.drop, target.device) if s.drop else None
    make_trainable(block, recipe.rounding, learn_steps=recipe.learn_steps, masks=drop)
    module = BlockReconstruction(
        block,
        layers,
        groups=recipe.groups,
        mixer=recipe.mixer,
        objective=recipe.objective,
        settings=s,
        masks=MaskBank(seed + 1, recipe.mixer.p, target.device),
        channel=channel_dim(block, target),
        rows=read,
        place=place,
    )
    module.train()
    trainer.fit(module, loader(features, target, batch=s.batch, steps=s.steps, seed=seed, weight=weight))
    block.eval()
    commit(block)
    losses = module.latest
    del module, trainer  # held in reference cycles: memory would grow with every block
    gc.collect()
    return losses


def _check_calibrated(model: MultiBitModel) -> None:
    for path, quantizer in quantizers_of(model):
        if not quantizer.calibrated:
            raise ModelError(
                f"the activation quantiser {path} has no step yet; expected a calibrated model. Call "
                f"quant.steps.calibrate with some images first."
            )
