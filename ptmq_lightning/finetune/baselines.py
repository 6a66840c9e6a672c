"""Every baseline that trains with labels: importing this module is what makes their names known."""

from __future__ import annotations

from ptmq_lightning.finetune import any_precision, multiquant, robustquant
from ptmq_lightning.finetune.fit import BASELINES, FinetuneKeys, FineTuning

__all__ = ["BASELINES", "FineTuning", "FinetuneKeys", "any_precision", "multiquant", "robustquant"]
