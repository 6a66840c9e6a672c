"""Every pass over the network's blocks, told to the loggers and kept for a resume block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import lightning as L
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ptmq_lightning.compose.caching import choose_store
from ptmq_lightning.compose.compiling import compiles
from ptmq_lightning.compose.folder import RunFolder
from ptmq_lightning.compose.free import free_memory
from ptmq_lightning.compose.memory import old_objects_set_aside
from ptmq_lightning.compose.progress import Progress
from ptmq_lightning.config import parts
from ptmq_lightning.config.schema import Config
from ptmq_lightning.quant import kernels
from ptmq_lightning.reconstruction.cache import predict_bytes
from ptmq_lightning.reconstruction.place import Place
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.reconstruct import BlockResult, reconstruct_model
from ptmq_lightning.reconstruction.tuning import tune
from ptmq_lightning.report.step_sizes import StepSizes
from ptmq_lightning.runtime.memory import release_freed_memory
from ptmq_lightning.runtime.model import MultiBitModel

WHOLE = "whole network"


def learn(
    model: MultiBitModel,
    images: Tensor,
    config: Config,
    loggers: Sequence[Logger] = (),
    folder: RunFolder | None = None,
    stage: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
) -> list[BlockResult]:
    """Every pass over the network, from the first block that an earlier, killed run of ``folder`` did not finish;
    images (N, C, H, W). stage: entered for the passes over the blocks, and for the one over the whole network."""
    with stage("reconstruct"):
        passes = parts.recipes(config, model)
        size = max((predict_bytes(model, images, recipe) for recipe in passes), default=0)
        store = choose_store(
            config.trainer.cache,
            size,
            images.device,
            folder.work if folder else None,
            processes=parts.local_processes(config.trainer),
        )
        last = config.tune.iterations(passes[0]) if passes else 0
        laid_out = parts.channels_last(config.trainer, model, images.device)
        fast = compiles(config.trainer.compile, model, images, passes, last)
        step_sizes = StepSizes(loggers, list(model.blocks))
        results = folder.restore(model) if folder else []
        done, blocks, before = len(results), len(model.blocks), (0, 0)
        for number, recipe in enumerate(passes):
            first = min(max(done - number * blocks, 0), blocks)
            units = [sum(recipe.count(b.layers.values()) for b in model.chain[:end]) for end in (first, blocks)]
            progress = Progress(recipe.schedule.iters, first_block=before[0] + units[0])

            def keep(index: int, result: BlockResult, number: int = number) -> None:
                release_freed_memory()
                if folder:
                    folder.keep(model, number * blocks + index, result)
                step_sizes.tell(index, model.blocks[index])

            def new_trainer(progress: Progress = progress) -> L.Trainer:
                return parts.trainer(config.trainer, loggers=loggers, callbacks=[progress])

            if first < blocks:
                with old_objects_set_aside(), kernels.compiled(fast):
                    results += reconstruct_model(
                        model,
                        images,
                        recipe,
                        new_trainer,
                        from_block=first,
                        after_block=keep,
                        before=before,
                        store=store,
                        channels_last=laid_out,
                    )
            before = (before[0] + units[1], before[1] + units[1] * recipe.schedule.iters)
    with stage("tune"):
        if passes and config.tune.iters != 0:
            place = Place(before[0], before[0] + 1, WHOLE, before[1], len(model.blocks), config.seed)
            with old_objects_set_aside(), kernels.compiled(fast):
                tune_with(model, images, passes[0], config, loggers, place, laid_out)
    return results


def tune_with(
    model: MultiBitModel,
    images: Tensor,
    recipe: Recipe,
    config: Config,
    loggers: Sequence[Logger],
    place: Place,
    laid_out: bool,
) -> None:
    """The pass over the whole network at once, behind those over its blocks."""

    def new_trainer() -> L.Trainer:
        progress = Progress(config.tune.iterations(recipe), first_block=place.index, explained=False)
        return parts.trainer(config.trainer, loggers=loggers, callbacks=[progress])

    tune(model, images, recipe, config.tune, new_trainer, place, free_memory(images.device), laid_out)
