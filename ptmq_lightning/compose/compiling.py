"""Whether the element-wise arithmetic of the fits is compiled: where it saves more than the compilation costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ptmq_lightning.quant import kernels
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.hooks import watched_inputs
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of

log = logging.getLogger(__name__)

SAVED = 5e-10  # processor seconds per value that a quantizer reads, forward and backward (benchmarks/speed.py)
COST = 60.0  # processor seconds of the compilation, the first time; later ones find it in torch's cache


def compiles(wanted: str, model: MultiBitModel, images: Tensor, passes: Sequence[Recipe], last: int = 0) -> bool:
    """Whether to compile; told in one line of log.

    Args:
        wanted: trainer.compile: always, never, or auto.
        images: calibration images (N, C, H, W).
        last: iterations of the pass over the whole network behind the others, at one width each.

    Raises:
        ConfigError: always, and nothing can be compiled.
    """
    if wanted == "never" or not passes:
        return False
    if wanted == "always":
        if why := kernels.failure(images.device):
            raise ConfigError(
                f"found trainer.compile=always, and torch cannot compile here: {why}; expected a C++ compiler, such as "
                "g++ with Python's headers. Install one, or set trainer.compile=never"
            )
        return True
    runs = sum(_passes(recipe, len(images)) for recipe in passes) + last * _batch(passes[0], len(images))
    saved = SAVED * values_per_image(model, images) * runs
    why = kernels.failure(images.device) if (worth := not images.is_cuda and saved > 2 * COST) else None
    pays = worth and why is None
    log.info(
        "trainer.compile=auto: %s (about %.0f processor seconds to save for %.0f of compilation%s)",
        "compiled" if pays else "not compiled", saved, COST, f"; torch cannot compile here: {why}" if why else "",
    )  # fmt: skip
    return pays


@torch.no_grad()
def values_per_image(model: MultiBitModel, images: Tensor) -> int:
    """What all activation quantizers read of one image."""
    counts = [0]

    def see(_name: str, x: Tensor) -> None:
        counts[0] += x.numel()

    with watched_inputs(dict(quantizers_of(model)), see):
        model.switch(None)
        model(images[:1])
    return counts[0]


def _passes(recipe: Recipe, images: int) -> int:
    """Images that pass every quantizer in a fit, all widths counted."""
    return recipe.schedule.iters * _batch(recipe, images) * len(recipe.groups.groups)


def _batch(recipe: Recipe, images: int) -> int:
    return min(recipe.schedule.batch, images)
