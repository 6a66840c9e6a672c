"""How large the calibration cache is, and the room its streams have.

A stream behind a block is written over the one in front of it, batch by batch, as nothing else reads that one any more:
one room per stream, each image's row as wide as the widest features of the network, serves the whole walk. Beside the
streams only the float input and the float target of one block are held, so memory does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.store import Kept, Store
from ptmq_lightning.reconstruction.units import UNITS
from ptmq_lightning.runtime.model import ModelBlock, MultiBitModel, select


class StreamRoom:
    """A room per stream for a whole walk over the network.

    Args:
        width: numbers per image, the most of all blocks.
    """

    def __init__(self, store: Store, keys: Sequence[Hashable], count: int, width: int, like: Tensor) -> None:
        self.store = store
        self.rooms = {key: store.room(count, width, like) for key in keys} if width else {}

    def behind(self, target: Kept) -> dict[Hashable, Kept]:
        """Streams as ``target`` (N, ...) is, over those that were there before: an image's over the same image's."""
        like = target[:1]
        return {key: room.kept(like) for key, room in self.rooms.items()}


@torch.no_grad()
def widest_stream(model: MultiBitModel, images: Tensor) -> int:
    """Numbers per image in the widest features that a stream holds: behind any block but the last."""
    x, widest = images[:1], 0
    for block in list(model.blocks)[:-1]:
        select(block, None)
        x = block(x)
        widest = max(widest, x.numel())
    return widest


@torch.no_grad()
def predict_bytes(model: MultiBitModel, images: Tensor, recipe: Recipe) -> int:
    """Bytes of the calibration cache at its largest, for images (N, C, H, W): the streams' rooms, a block's float input
    and target, and where layers are fitted alone what is carried to each layer."""
    streams = len(recipe.mixer.streams(recipe.groups))
    x, largest = images[:1], 0
    for index, block in enumerate(model.chain):
        select(block.module, None)
        target = block.module(x)
        rest = nn.Sequential(*list(model.blocks)[index + 1 :])
        largest = max(largest, x.numel() + target.numel() + _carried(block, rest, x, recipe.unit, streams))
        x = target
    return (largest + streams * widest_stream(model, images)) * len(images) * images.element_size()


def _carried(block: ModelBlock, rest: nn.Sequential, x: Tensor, kind: str, streams: int) -> int:
    """Numbers per image that the units of a block need at most beside the block's own; x: its input (1, ...)."""
    most = 0
    for unit in UNITS[kind].units(block, rest):
        if not unit.whole:
            own = x if unit.before is None else unit.before(x)
            carried = 0 if unit.before is None else own.numel() * (1 + streams)
            most = max(most, carried + unit.module(own).numel())
    return most
