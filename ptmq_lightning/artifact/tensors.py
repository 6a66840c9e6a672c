"""The tensors of an artifact, each beside its label: dtype, shape and the SHA-256 of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ptmq_lightning.artifact.manifest import ARTIFACT, NO_TENSORS, TENSORS, check_names, no_tensors
from ptmq_lightning.runtime.errors import ArtifactError


def label(tensor: Tensor) -> dict[str, Any]:
    """dtype, shape and SHA-256 of the bytes of a contiguous tensor."""
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "sha256": hashlib.sha256(raw).hexdigest()}


def read_tensors(folder: Path, labels: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors, read once into memory.

    Args:
        labels: name -> what `label` says of the tensor, from the manifest.

    Raises:
        ArtifactError: naming the first tensor that is not the one of its label.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load((folder / TENSORS).read_bytes())
    except (OSError, *NO_TENSORS) as error:
        raise no_tensors(folder, error) from error
    check_names(folder, set(tensors), labels)
    for name, wanted in labels.items():
        found = label(tensors[name])
        for key, value in wanted.items():
            if found.get(key) != value:
                raise ArtifactError(
                    f"cannot load '{folder}': the {key} of tensor '{name}' is {found.get(key)}; expected {value}. "
                    f"{ARTIFACT.again}"
                )
    return tensors
