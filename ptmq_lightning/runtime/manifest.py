"""The two files of an artifact read back: every tensor beside its label, and one message naming what does not match."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ptmq_lightning.runtime.errors import ArtifactError

FORMAT, VERSION = "ptmq artifact", 2
MANIFEST, TENSORS = "manifest.json", "model.safetensors"
_NO_TENSORS = (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
_AGAIN = "Copy the artifact again from where it was saved."


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact whose two files are there, whole and unaltered. Raises ArtifactError."""
    for name in (MANIFEST, TENSORS):
        if not (folder / name).is_file():
            raise ArtifactError(f"cannot load '{folder}': found no {name}; expected {MANIFEST} and {TENSORS}. {_AGAIN}")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"cannot load '{folder}': {MANIFEST} is no JSON ({error}). {_AGAIN}") from error
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise ArtifactError(
            f"cannot load '{folder}': {MANIFEST} has format {found[0]!r} version {found[1]!r}; expected {FORMAT!r} "
            f"version {VERSION}. Load it with the release of ptmq-lightning that wrote it."
        )
    if manifest.get("sha256") != digest(manifest):
        raise ArtifactError(
            f"cannot load '{folder}': {MANIFEST} was altered, its SHA-256 is {digest(manifest)[:12]}...; expected "
            f"{str(manifest.get('sha256'))[:12]}.... {_AGAIN}"
        )
    return dict(manifest)


def read_tensors(folder: Path, labels: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors, read once into memory, each compared with its label. Raises ArtifactError."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load((folder / TENSORS).read_bytes())
    except _NO_TENSORS as error:
        raise ArtifactError(
            f"cannot load '{folder}': {TENSORS} is truncated or no safetensors file ({error}). {_AGAIN}"
        ) from error
    odd = sorted(set(tensors) ^ set(labels))
    if odd:
        found = f"{TENSORS} holds {odd[0]!r}" if odd[0] in tensors else f"{TENSORS} does not hold {odd[0]!r}"
        raise ArtifactError(
            f"cannot load '{folder}': {found}; expected the {len(labels)} tensors of {MANIFEST}. {_AGAIN}"
        )
    for name, wanted in labels.items():
        found_label = label(tensors[name])
        for key, value in wanted.items():
            if found_label.get(key) != value:
                raise ArtifactError(
                    f"cannot load '{folder}': the {key} of tensor '{name}' is {found_label.get(key)}; expected "
                    f"{value}. {_AGAIN}"
                )
    return tensors


def digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of the manifest without its own."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def label(tensor: Tensor) -> dict[str, Any]:
    """dtype, shape and SHA-256 of the bytes of a contiguous tensor."""
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "sha256": hashlib.sha256(raw).hexdigest()}
