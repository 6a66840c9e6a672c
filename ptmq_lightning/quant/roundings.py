"""Every rounding that ships: importing this module is what makes their names known."""

from __future__ import annotations

from ptmq_lightning.quant import latent, planes
from ptmq_lightning.quant.learned import ROUNDINGS, LearnedWeight, RoundingKeys

__all__ = ["ROUNDINGS", "LearnedWeight", "RoundingKeys", "latent", "planes"]
