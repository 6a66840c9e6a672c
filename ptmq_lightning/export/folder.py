"""The folder of an export: `export.json`, with the SHA-256 of every other file and of itself, and those files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ptmq_lightning.artifact.manifest import digest
from ptmq_lightning.runtime.errors import ExportError

FORMAT, VERSION = "ptmq export", 3
MANIFEST, WIDTHS = "export.json", "widths.safetensors"
_AGAIN = "Copy the export again, or export the artifact again."


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Seal a folder whose other files are there."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    hashes = {path.name: _sha256(path) for path in files}
    whole = {"format": FORMAT, "version": VERSION} | manifest | {"hashes": hashes}
    (folder / MANIFEST).write_text(json.dumps(whole | {"sha256": digest(whole)}, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """export.json of a folder whose files are all there and unaltered; ExportError naming the first that is not."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(
            f"cannot open '{folder}': {MANIFEST} cannot be read ({type(error).__name__}); expected a folder that "
            f"`ptmq export` wrote. Export the artifact again."
        ) from error
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != (FORMAT, VERSION):
        raise ExportError(
            f"cannot open '{folder}': {MANIFEST} has format {found[0]!r} version {found[1]!r}; expected {FORMAT!r} "
            f"version {VERSION}. Export the artifact again."
        )
    _compare(folder, MANIFEST, digest(manifest), str(manifest.get("sha256")))
    for name, wanted in manifest["hashes"].items():
        try:
            own = _sha256(folder / name)
        except OSError as error:
            raise ExportError(
                f"cannot open '{folder}': {name} cannot be read ({type(error).__name__}); expected the "
                f"{len(manifest['hashes'])} files that {MANIFEST} lists. {_AGAIN}"
            ) from error
        _compare(folder, name, own, wanted)
    return dict(manifest)


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
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return {MANIFEST, WIDTHS, *manifest["files"].values()} if manifest["format"] == FORMAT else set()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _compare(folder: Path, name: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise ExportError(
            f"cannot open '{folder}': {name} was altered, its SHA-256 is {found[:12]}...; expected {wanted[:12]}.... "
            f"{_AGAIN}"
        )
