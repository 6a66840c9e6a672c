"""A first pass of images through a loaded network: what its graph cannot do is one message."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ptmq_lightning.runtime.errors import ArtifactError, PTMQError


def compute(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits (B, classes) of images (B, C, H, W). Raises ArtifactError where the stored graph fails on them, or gives
    anything else."""
    try:
        with torch.inference_mode():
            logits = model(images)
    except PTMQError:
        raise
    except Exception as error:  # a stranger's graph may fail in any way, also by asking for too much memory
        first = (str(error).strip() or "no reason given").splitlines()[0][:300]
        raise ArtifactError(_FAILED.format(tuple(images.shape), f"{type(error).__name__}: {first}")) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ArtifactError(_FAILED.format(tuple(images.shape), f"it gives {found}"))
    return logits


_FAILED = (
    "the stored network cannot compute with images of shape {} ({}); expected logits (B, classes). Give images of the "
    "size that `ptmq info` tells, or copy the artifact again from where it was saved."
)
