"""How far the learned step sizes have moved from the calibrated ones, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import quantizers_of, weights_of
from ptmq_lightning.runtime.weights import CommittedWeight

BLOCK = "block"


class StepSizes:
    """Of a model before its fits; tells the loggers that ask for it what a fit has made of a block's.

    Only loggers with a method `log_block` ask, and where none does nothing is read.
    """

    def __init__(self, loggers: Sequence[Logger], blocks: Sequence[nn.Module]) -> None:
        self.loggers: list[Any] = [logger for logger in loggers if hasattr(logger, "log_block")]
        self.before = [step_sizes(block) for block in blocks] if self.loggers else []

    def tell(self, index: int, block: nn.Module) -> None:
        """Block `index` is finished: its step sizes over what they were."""
        if not self.loggers:
            return
        now, before = step_sizes(block), self.before[index]
        moved = {f"step_sizes/{name}": now[name] / before[name] for name in now if before.get(name)}
        for logger in self.loggers:
            logger.log_block({BLOCK: index + 1, **moved})


def step_sizes(block: nn.Module) -> dict[str, float]:
    """ "a4": the geometric mean of the block's activation step sizes at 4 bits, "w4": of its weights'."""
    found: dict[str, list[Tensor]] = {}
    for kind, modules in (("a", quantizers_of(block)), ("w", weights_of(block))):
        for _, module in modules:
            if isinstance(module, ActivationQuantizer | CommittedWeight):
                for bits, steps in zip(module.widths, module.steps, strict=True):
                    found.setdefault(f"{kind}{bits}", []).append(steps.detach().log().mean())
    return {name: float(sum(logs).div(len(logs)).exp()) for name, logs in sorted(found.items())}  # type: ignore[union-attr]
