"""The manifest of an artifact: what the model is, which tensors stand beside it, and one message for what is wrong.

Read without torch: whoever only looks at an artifact need not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ptmq_lightning.artifact.schema import check_manifest
from ptmq_lightning.runtime.errors import ArtifactError, PTMQError
from ptmq_lightning.runtime.files import set_aside
from ptmq_lightning.runtime.sealed import Sealed

MANIFEST, TENSORS = "manifest.json", "model.safetensors"
EXPORT = "export.json"  # the manifest of an export (export/folder.py), which is given in an artifact's place
ARTIFACT = Sealed(
    "ptmq artifact", 3, MANIFEST, ArtifactError, "cannot load",
    older="Load it with the release of ptmq-lightning that wrote it.",
    again="Copy the artifact again from where it was saved.",
)  # fmt: skip
NO_TENSORS = (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)  # of damaged files


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, unaltered and within its limits, of an artifact whose other file is whole and holds its tensors.

    Of the tensors it reads names alone; their bytes are compared by `artifact.tensors`.

    Raises:
        ArtifactError: naming the first thing that does not match.
    """
    _require_files(folder)
    manifest = ARTIFACT.read(folder)
    try:
        check_manifest(manifest)
    except PTMQError as error:
        raise ARTIFACT.failed(folder, f"{MANIFEST} describes no network: {error}. {ARTIFACT.again}") from error
    try:
        with safe_open(folder / TENSORS, "np") as file:  # compares the length of the file with its header
            check_names(folder, set(file.keys()), manifest["tensors"])
    except (OSError, *NO_TENSORS) as error:
        raise no_tensors(folder, error) from error
    return manifest


def _require_files(folder: Path) -> None:
    for name in (MANIFEST, TENSORS):
        try:
            there = (folder / name).is_file()
        except OSError as error:
            raise ARTIFACT.unreadable(folder, name, error) from error
        if not there:
            raise ArtifactError(
                f"cannot load '{folder}': found no {name}; expected {MANIFEST} and {TENSORS}. {_instead_of(folder)}"
            )


def _instead_of(folder: Path) -> str:
    """What to do about a folder that is no artifact, by what it is."""
    if left := [] if folder.exists() else set_aside(folder.resolve()):
        return f"A save was stopped and left the artifact in '{left[-1]}'. Rename it."
    if not folder.exists():
        return "There is no such folder: give the one that save() wrote, in a run's folder model/."
    if (folder / "model" / MANIFEST).is_file():
        return f"It is a run's folder: give '{folder / 'model'}'."
    if (folder / EXPORT).is_file():
        return "It is an export, which ptmq predict, bench --export and demo read: give the artifact it was made of."
    return ARTIFACT.again


def check_names(folder: Path, names: set[str], labels: Mapping[str, Any]) -> None:
    """Raise ArtifactError where the tensors in the file (names) are others than those of the manifest (labels)."""
    odd = sorted(names ^ set(labels))
    if odd:
        found = f"{TENSORS} holds {odd[0]!r}" if odd[0] in names else f"{TENSORS} does not hold {odd[0]!r}"
        raise ArtifactError(
            f"cannot load '{folder}': {found}; expected the {len(labels)} tensors of {MANIFEST}. {ARTIFACT.again}"
        )


def no_tensors(folder: Path, error: Exception) -> PTMQError:
    """What to raise for a file of tensors that cannot be opened."""
    if isinstance(error, OSError):
        return ARTIFACT.unreadable(folder, TENSORS, error)
    return ARTIFACT.failed(folder, f"{TENSORS} is truncated or no safetensors file ({error}). {ARTIFACT.again}")
