"""Every search of widths per layer, registered under its name."""

from ptmq_lightning.allocate import baselines, greedy, milp
from ptmq_lightning.allocate.problem import SEARCHES

__all__ = ["SEARCHES", "baselines", "greedy", "milp"]
