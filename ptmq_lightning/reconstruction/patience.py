"""The early end of a fit: its error on held-out images has settled, and so has the rounding.

Before the roundings are decided no error says what the unit will be: the regularizer goes on to move them. So a fit
ends early only where they are, and what is left of the iterations would move step sizes alone.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L

DECIDED = 0.99  # share of the roundings
FALLS = 0.99  # of the best error: what counts as better


class Patience(L.Callback):
    """Ends the fit of a unit whose held-out error has not fallen for ``patience`` lines of metrics.

    It reads ``latest`` and ``held_out_error`` of the module, which every process computes alike.
    """

    def __init__(self, patience: int, every: int) -> None:
        self.patience, self.every = patience, every
        self.best, self.waited = math.inf, 0

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        if trainer.global_step % self.every:
            return
        error = module.held_out_error()
        self.waited = 0 if error < FALLS * self.best else self.waited + 1
        self.best = min(self.best, error)
        if self.waited >= self.patience and module.latest["settled"] >= DECIDED:
            trainer.should_stop = True
