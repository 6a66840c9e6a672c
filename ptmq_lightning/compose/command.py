"""`python train.py` and `ptmq-train`: the training command, or one line that names what is not installed."""

from __future__ import annotations

import sys

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.extras import require


def main() -> None:
    """Run the command line of this process where the extra "train" is installed."""
    try:
        require("train", "hydra", "lightning", "omegaconf", "timm", "torchmetrics", "torchvision", "wandb")
    except ConfigError as error:
        sys.exit(f"error: {error}")
    from ptmq_lightning.compose.cli import main as command

    command()
