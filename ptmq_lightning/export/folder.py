"""The folder of an export: `export.json`, with the SHA-256 of every other file and of itself, and those files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.sealed import Sealed, read_object, sha256_of

WEIGHTS = ("signed", "portable")
MANIFEST, WIDTHS = "export.json", "widths.safetensors"
EXPORT = Sealed(
    "ptmq export", 4, MANIFEST, ExportError, "cannot open",
    older="Export the artifact again.",
    again="Copy the export again, or export the artifact again.",
)  # fmt: skip


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Seal a folder whose other files are there."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    whole = EXPORT.stamped({**manifest, "hashes": {path.name: sha256_of(path) for path in files}})
    (folder / MANIFEST).write_text(json.dumps(whole, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """export.json of a folder whose files are all there and unaltered; ExportError naming the first that is not."""
    manifest = EXPORT.read(folder)
    for name, wanted in manifest["hashes"].items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise EXPORT.unreadable(folder, name, error) from error
        EXPORT.compare(folder, name, found, wanted)
    return manifest


def check_place(folder: Path) -> None:
    """ExportError where an export would replace anything but an earlier export."""
    if folder.is_file():
        others = ["a file"]
    else:
        own = _files_of(folder)
        held = sorted(folder.iterdir()) if folder.exists() else []
        others = [path.name for path in held if path.name not in own or not path.is_file()]
    if others:
        raise ExportError(
            f"cannot export to '{folder}': found {others[0]!r} there; expected a new folder, an empty one or one that "
            f"holds an earlier export and nothing else. Choose another folder."
        )


def _files_of(folder: Path) -> set[str]:
    """The files that an earlier export of any version wrote, by its own account."""
    try:
        manifest = read_object(folder / MANIFEST)
        return {MANIFEST, WIDTHS, *manifest["files"].values()} if manifest["format"] == EXPORT.format else set()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()
