"""What a switch of width costs in time, measured: the fastest of some rounds, on a CPU in the process's own time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from ptmq_lightning.runtime.model import MultiBitModel, weights_of
from ptmq_lightning.runtime.spec import BitWidth

ROUNDS = 5


def clock_of(cuda: bool) -> Callable[[], float]:
    """Seconds; on a CPU of the process alone, since the rest of a busy machine can only add to them."""
    return time.perf_counter if cuda else time.process_time


@torch.no_grad()
def switch_milliseconds(model: MultiBitModel, pairs: Sequence[BitWidth]) -> float:
    """Mean over pairs: choose the pair and derive every weight of it, as the next image would need it."""
    best = dict.fromkeys(pairs, float("inf"))
    before, cuda = model.active, next(model.buffers()).is_cuda
    clock = clock_of(cuda)
    for pair in [*pairs] * ROUNDS:
        started = clock()
        model.switch(pair)
        for block in model.blocks:
            for _, weight in weights_of(block):
                weight()
        if cuda:
            torch.cuda.synchronize()
        best[pair] = min(best[pair], 1000 * (clock() - started))
    model.switch(before)
    return sum(best.values()) / len(best)
