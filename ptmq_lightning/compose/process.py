"""What a run sets in its process: seeds, threads, memory and log levels; and a caller's process as it was before."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only

from ptmq_lightning.compose.memory import forget_peak_memory
from ptmq_lightning.config.parts import CHATTY, quieten
from ptmq_lightning.config.schema import TrainerConfig
from ptmq_lightning.runtime.memory import keep_freed_memory

deterministic_module: Any = torch.utils.deterministic


@contextmanager
def as_before() -> Iterator[None]:
    """Random states, deterministic algorithms, threads, log levels and warnings of a caller's process stay its own."""
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    deterministic, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill, threads = deterministic_module.fill_uninitialized_memory, torch.get_num_threads()
    drawn, numbers = random.getstate(), np.random.get_state()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(numbers)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn)
        deterministic_module.fill_uninitialized_memory = fill
        torch.set_num_threads(threads)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def prepare(config: TrainerConfig, seed: int) -> None:
    """Seeds, threads and memory of this process."""
    quieten()
    if getattr(rank_zero_only, "rank", 0):
        logging.getLogger("ptmq_lightning").setLevel(logging.ERROR)  # one process of several reports
    warnings.filterwarnings("ignore", message=".*(does not have many workers|treespec, LeafSpec).*")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    keep_freed_memory()
    forget_peak_memory()
    # deterministic algorithms would also fill all new memory, which no result here is read from
    deterministic_module.fill_uninitialized_memory = False
    L.seed_everything(seed, workers=True, verbose=False)
