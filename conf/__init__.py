"""The configuration groups; inside the wheel as ``ptmq_lightning.conf``."""
