"""Block by block through the network: cache, fit, commit, advance (PTMQ §1.9)."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from torch import Tensor, nn

from ptmq_lightning.reconstruction.cache import StreamRoom, widest_stream
from ptmq_lightning.reconstruction.correction import correct_biases
from ptmq_lightning.reconstruction.features import Features, advance, run_float
from ptmq_lightning.reconstruction.fit import Fit, NewTrainer
from ptmq_lightning.reconstruction.place import Place
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.store import MEMORY, ChannelsLast, Kept, Store
from ptmq_lightning.reconstruction.tokens import Tokens, look_at_tokens
from ptmq_lightning.reconstruction.units import UNITS, Unit
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.model import ModelBlock, MultiBitModel, quantizers_of


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
    new_trainer: NewTrainer,
    *,
    from_block: int = 0,
    after_block: Callable[[int, BlockResult], None] = lambda index, result: None,
    before: tuple[int, int] = (0, 0),
    store: Store = MEMORY,
    channels_last: bool = False,
) -> list[BlockResult]:
    """Learn rounding and step sizes of every block, in place, in the order of execution.

    Args:
        images: calibration images (N, C, H, W).
        new_trainer: a fresh Trainer per unit (a Trainer that has reached its end trains nothing again).
        from_block: blocks before it are committed already; their features are made again, which is exact, as every
            draw has its unit's seed.
        after_block: told each block's index and result.
        before: units and iterations of earlier passes over the network.
        store: where features are kept. It changes no tensor.
        channels_last: how features are laid out. It changes the order in which convolutions add.

    Raises:
        ModelError: the model is not calibrated.
    """
    _check_calibrated(model)
    model.switch(None)
    keys = recipe.mixer.streams(recipe.groups)
    first = ChannelsLast(images) if channels_last else images
    features = Features(first, dict.fromkeys(keys, first))
    room = StreamRoom(store, keys, len(images), widest_stream(model, images), images)
    place = Place(before[0], before[0] + recipe.count(model.layers.values()), "", before[1], seed=recipe.seed)
    weigh = recipe.objective.error_weight.of_tokens
    tokens = look_at_tokens(model.blocks, images, place.generator(0), weigh=weigh)
    results: list[BlockResult] = []
    for index, block in enumerate(model.chain):
        rest = nn.Sequential(*list(model.blocks)[index + 1 :])
        walk = _Walk(recipe, block, rest, features, place.at(index, block.name), room)
        if index >= from_block:
            results.append(walk.fit(new_trainer, tokens[index]))
            after_block(index, results[-1])
        features, place = walk.ahead(), walk.end
        del walk  # and with it the features in front of the block: memory must not grow with depth
    return results


class _Walk:
    """One block's turn: features and place in front of it, and what they become behind it."""

    def __init__(
        self,
        recipe: Recipe,
        block: ModelBlock,
        rest: nn.Sequential,
        features: Features,
        place: Place,
        room: StreamRoom,
    ) -> None:
        self.recipe, self.block, self.rest, self.features, self.place = recipe, block, rest, features, place
        self.batch, self.room, self.store = recipe.schedule.batch, room, room.store
        self.target = run_float(block.module, features.fp, self.batch, self.store)  # (N, ...)
        self.end = place.after(recipe.count(block.layers.values()), recipe.schedule.iters)

    def fit(self, new_trainer: NewTrainer, tokens: Tokens) -> BlockResult:
        """Every unit of the block in turn, and the correction of its biases where the recipe has one."""
        started, place = time.perf_counter(), self.place
        losses: dict[str, float] = {}
        for unit in UNITS[self.recipe.unit].units(self.block, self.rest):
            losses = self.fit_of(unit, place.at(place.block, unit.name), tokens).run(new_trainer)
            place = place.after(1, self.recipe.schedule.iters)
        result = BlockResult(self.block.name, time.perf_counter() - started, losses, self.end.offset)
        if self.recipe.bias_correction == "after":
            correct_biases(self.block.module, self.features.fp, self.batch)
        return result

    def fit_of(self, unit: Unit, place: Place, tokens: Tokens) -> Fit:
        """The fit of a unit: the block's features, carried to the unit's input."""
        inputs = self.features
        if unit.before is not None:
            fp = run_float(unit.before, inputs.fp, self.batch, self.store)
            streams = {key: self.store.empty(len(fp), fp[:1]) for key in inputs.streams}
            inputs = self._through(unit.before, fp, place, streams)
        target = self.target if unit.whole else run_float(unit.module, inputs.fp, self.batch, self.store)
        return Fit(self.recipe, unit, inputs, target, self.features.fp, place, tokens)

    def ahead(self) -> Features:
        """Features behind the finished block, its streams over those in front of it; none are needed behind the last
        one."""
        if not len(self.rest):
            return self.features
        return self._through(self.block.module, self.target, self.place, self.room.behind(self.target))

    def _through(self, part: nn.Module, target: Kept, place: Place, streams: dict[Hashable, Kept]) -> Features:
        return advance(part, self.block.layers, self.features, target, self.recipe, place.generator(), streams)


def _check_calibrated(model: MultiBitModel) -> None:
    for path, quantizer in quantizers_of(model):
        if not quantizer.calibrated:
            raise ModelError(
                f"the activation quantizer {path} has no step size yet; expected a calibrated model. Call "
                f"quant.steps.calibrate with some images first."
            )
