"""The two files of an artifact read back: every tensor beside its label, and one message naming what does not match."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ptmq_lightning.runtime.errors import ArtifactError

FORMAT, VERSION = "ptmq artifact", 2
MANIFEST, TENSORS = "manifest.json", "model.safetensors"
_PARTS = {"info": dict, "pairs": list, "assignments": dict, "layers": list, "blocks": list, "tensors": dict}
_NO_TENSORS = (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
_AGAIN = "Copy the artifact again from where it was saved."


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, unaltered, of an artifact whose other file is whole and holds its tensors. Raises ArtifactError.

    Of the tensors it reads names alone.
    """
    try:
        for name in (MANIFEST, TENSORS):
            if not (folder / name).is_file():
                left = [] if folder.exists() else left_aside(folder.resolve())
                what = f"A save was stopped and left the artifact in '{left[-1]}'. Rename it." if left else _AGAIN
                raise ArtifactError(
                    f"cannot load '{folder}': found no {name}; expected {MANIFEST} and {TENSORS}. {what}"
                )
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise _unreadable(folder, MANIFEST, error) from error
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
    for part, kind in _PARTS.items():
        if not isinstance(manifest.get(part), kind):
            raise ArtifactError(
                f"cannot load '{folder}': {MANIFEST} has {type(manifest.get(part)).__name__} as {part!r}; expected a "
                f"{kind.__name__}, as save() writes it. Save the model again."
            )
    try:
        with safe_open(folder / TENSORS, "pt") as file:  # compares the length of the file with its header
            _check_names(folder, set(file.keys()), manifest["tensors"])
    except (OSError, *_NO_TENSORS) as error:
        raise _no_tensors(folder, error) from error
    return dict(manifest)


def left_aside(place: Path) -> list[Path]:
    """The artifacts that had the name `place` before saves that were killed as they replaced them, the latest last."""
    name = re.compile(rf"\.{re.escape(place.name)}\.[0-9a-f]{{8}}\.old")
    beside = place.parent.iterdir() if place.parent.is_dir() else ()
    return sorted((path for path in beside if name.fullmatch(path.name)), key=lambda path: path.stat().st_mtime)


def read_tensors(folder: Path, labels: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors, read once into memory, each compared with its label. Raises ArtifactError."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load((folder / TENSORS).read_bytes())
    except (OSError, *_NO_TENSORS) as error:
        raise _no_tensors(folder, error) from error
    _check_names(folder, set(tensors), labels)
    for name, wanted in labels.items():
        found_label = label(tensors[name])
        for key, value in wanted.items():
            if found_label.get(key) != value:
                raise ArtifactError(
                    f"cannot load '{folder}': the {key} of tensor '{name}' is {found_label.get(key)}; expected "
                    f"{value}. {_AGAIN}"
                )
    return tensors


def _check_names(folder: Path, names: set[str], labels: dict[str, Any]) -> None:
    odd = sorted(names ^ set(labels))
    if odd:
        found = f"{TENSORS} holds {odd[0]!r}" if odd[0] in names else f"{TENSORS} does not hold {odd[0]!r}"
        raise ArtifactError(
            f"cannot load '{folder}': {found}; expected the {len(labels)} tensors of {MANIFEST}. {_AGAIN}"
        )


def _no_tensors(folder: Path, error: Exception) -> ArtifactError:
    if isinstance(error, OSError):
        return _unreadable(folder, TENSORS, error)
    return ArtifactError(f"cannot load '{folder}': {TENSORS} is truncated or no safetensors file ({error}). {_AGAIN}")


def _unreadable(folder: Path, name: str, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot load '{folder}': {name} cannot be read ({error.strerror or error}); expected two readable files. "
        f"Check who may read them and the disk they are on."
    )


def digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of the manifest without its own."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def label(tensor: Tensor) -> dict[str, Any]:
    """dtype, shape and SHA-256 of the bytes of a contiguous tensor."""
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "sha256": hashlib.sha256(raw).hexdigest()}
