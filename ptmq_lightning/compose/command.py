"""`python train.py` and `ptmq-train`: the training command, or one line that names what is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.extras import require

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Run the command line of this process where the extra "train" is installed."""
    try:
        require("train", "hydra", "lightning", "omegaconf", "timm", "torchmetrics", "torchvision", "wandb")
    except ConfigError as error:
        sys.exit(f"error: {error}{_in_a_checkout()}")
    from ptmq_lightning.compose.cli import main as command

    command()


def _in_a_checkout() -> str:
    """What else helps in a copy of the repository: its own environment, which another shell may have active."""
    if not (ROOT / "Makefile").is_file():
        return ""
    return f" In this checkout: `make setup` once, then `. {ROOT / '.venv' / 'bin' / 'activate'}` in every shell."
