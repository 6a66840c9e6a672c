"""How much one layer's width hurts the network's answer, layer by layer and pair by pair (PTMQ §5).

A measure is a class that is asked for the harm of a layer at a pair while every other layer runs at the widest pair:
`divergence` as it is written there, `fisher` by the layer's block alone. What they share is the loop over the blocks
here. The result is non-increasing in the width: noise may not make a wider layer look worse. B batch, C classes.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from torch import Tensor

from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough
from ptmq_lightning.runtime.registry import Registry
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

log = logging.getLogger(__name__)

Sensitivity = dict[str, dict[BitWidth, float]]


class Measure(ABC):
    """The harm of layers, asked for block by block.

    Args:
        model: calibrated.
        images: (N, C, H, W).
        base: what every layer runs at but the one that is measured.
        batch: images at a time; None: the measure's own.
    """

    batch: ClassVar[int] = 64

    def __init__(
        self, model: MultiBitModel, images: Tensor, base: Mapping[str, BitWidth], batch: int | None = None
    ) -> None:
        self.model, self.base = model, base
        self.images = list(images.split(batch or self.batch))  # (B, C, H, W) each

    @abstractmethod
    def start(self, index: int) -> None:
        """The next layers to be asked for are those of the block with this index; called for each block, in order."""

    @abstractmethod
    def harm(self, name: str, pair: BitWidth) -> float:
        """Of a layer of the block at hand at a pair."""

    def changed(self, changes: Mapping[str, BitWidth]) -> AbstractContextManager[MultiBitModel]:
        """The model with these layers' widths and all others at the base."""
        return at_bits(self.model, BitAssignment(tuple({**self.base, **changes}.items())))


MEASURES: Registry[Callable[..., Measure]] = Registry("sensitivity")


def measure_layers(
    measure: Callable[..., Measure],
    model: MultiBitModel,
    images: Tensor,
    pairs: Sequence[BitWidth],
    *,
    separately: bool = False,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """The harm of every free weight layer at every pair; layers of pinned weights and matmuls have none.

    Args:
        measure: one of `MEASURES`.
        model: calibrated; its current selection is the same afterwards.
        images: (N, C, H, W).
        pairs: the pairs to measure; the widest is what the other layers run at.
        separately: measure weights and activations by themselves, and take the sum for a pair: far fewer passes where
            ``pairs`` are all combinations.
        batch: images at a time; None: the measure's own.
        progress: called with (layers done, layers).
    """
    base, free = base_of(model, pairs), free_layers(model)
    log.info("sensitivity of %d layers at %d pairs, the other layers at %s", len(free), len(pairs), max(pairs))
    measured, of_layer = measure(model, images, base, batch), _apart if separately else _together
    result: Sensitivity = {}
    for index in range(len(model.blocks)):
        measured.start(index)
        for name in (name for name in free if model.layers[name].block == index):
            result[name] = non_increasing(of_layer(measured, name, pairs))
            if progress is not None:
                progress(len(result), len(free))
    return result


def _together(measure: Measure, name: str, pairs: Sequence[BitWidth]) -> dict[BitWidth, float]:
    return {pair: measure.harm(name, pair) for pair in pairs}


def _apart(measure: Measure, name: str, pairs: Sequence[BitWidth]) -> dict[BitWidth, float]:
    """The harm of the weight's width, plus what the activation's adds to it at the widest weights."""
    widest = max(pairs)
    of_w = {w: measure.harm(name, BitWidth(w, widest.a)) for w in dict.fromkeys(pair.w for pair in pairs)}
    of_a = {a: measure.harm(name, BitWidth(widest.w, a)) for a in dict.fromkeys(pair.a for pair in pairs)}
    return {pair: max(of_w[pair.w] + of_a[pair.a] - of_w[widest.w], 0.0) for pair in pairs}


def base_of(model: MultiBitModel, pairs: Sequence[BitWidth]) -> dict[str, BitWidth]:
    """What every layer runs at but the one that is measured: the widest of the pairs."""
    widest = max(pairs)
    return dict(BitAssignment.uniform(widest.w, widest.a, model).items())


def free_layers(model: MultiBitModel) -> list[str]:
    """The weight layers whose width is free."""
    return [name for name, info in model.layers.items() if info.weight_shape is not None and info.pin_w is None]


def reference(model: MultiBitModel) -> Any:
    """Context in which the model gives the answers that it is held against: the float network's, or those of the
    widest pair where it was stored without the float network."""
    return passthrough(model) if model.has_float else at_bits(model, max(model.pairs))


def non_increasing(measured: Mapping[BitWidth, float]) -> dict[BitWidth, float]:
    """Each pair's figure raised to that of the worst pair that is at least as wide in both parts."""
    return {
        pair: max(value for other, value in measured.items() if other.w >= pair.w and other.a >= pair.a)
        for pair in measured
    }
