"""Every measure of a layer's sensitivity, registered under its name."""

from ptmq_lightning.allocate import divergence, fisher
from ptmq_lightning.allocate.sensitivity import MEASURES

__all__ = ["MEASURES", "divergence", "fisher"]
