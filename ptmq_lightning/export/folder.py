"""The folder of an export: `export.json`, with the SHA-256 of every other file and of itself, and those files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptmq_lightning.artifact.schema import check_table
from ptmq_lightning.export.targets import backends, forms
from ptmq_lightning.runtime.checked import check
from ptmq_lightning.runtime.errors import ExportError, PTMQError
from ptmq_lightning.runtime.preprocessing import is_image_size
from ptmq_lightning.runtime.sealed import Sealed, read_object, sha256_of

WEIGHTS = ("signed", "portable")
ONE_FILE = ("switchable", "multi")  # forms of one graph for all widths
MANIFEST, WIDTHS, README = "export.json", "widths.safetensors", "README.md"
PACKAGES = (".mlpackage",)  # folders that are one file to their runtime
_PARTS = {
    "form": str, "backend": str, "weights": str, "old_processors": str, "files": dict, "hashes": dict,
    "image_shape": list, "info": dict, "pairs": list, "layers": list, "assignments": dict, "table": dict,
    "constants": list, "float_layers": list,
}  # fmt: skip
EXPORT = Sealed(
    "ptmq export", 4, MANIFEST, ExportError, "cannot open",
    older="Export the artifact again.",
    again="Copy the export again, or export the artifact again.",
)  # fmt: skip


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Seal a folder whose other files are there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    hashes = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    whole = EXPORT.stamped({**manifest, "hashes": hashes})
    (folder / MANIFEST).write_text(json.dumps(whole, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """export.json of a folder whose files are all there and unaltered; ExportError naming the first that is not, and
    for a value that is out of its limits."""
    manifest = EXPORT.read(folder)
    try:
        _check(manifest)
    except PTMQError as error:
        raise EXPORT.failed(folder, f"{MANIFEST} describes no export: {error}. {EXPORT.again}") from error
    for name, wanted in manifest["hashes"].items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            raise EXPORT.unreadable(folder, name, error) from error
        EXPORT.compare(folder, name, found, wanted)
    return manifest


def _check(manifest: Mapping[str, Any]) -> None:
    """Every value that a session reads, against its type and limits. Raises PTMQError naming the place."""
    for part, kind in _PARTS.items():
        check(manifest.get(part), kind, part, ExportError)
    for part, choices in (("form", forms()), ("backend", backends()), ("weights", WEIGHTS)):
        if manifest[part] not in choices:
            raise ExportError(f"{part} is {manifest[part]}; expected one of {', '.join(choices)}")
    if not is_image_size(tuple(manifest["image_shape"])):
        raise ExportError(f"image_shape is {manifest['image_shape']}; expected (channels, height, width)")
    check_table(manifest)
    if not manifest["assignments"]:
        raise ExportError("assignments is empty; expected at least one width")
    for name, row in manifest["table"].items():
        check(row, list, f"table.{name}", ExportError)
    _check_files(manifest)


def _check_files(manifest: Mapping[str, Any]) -> None:
    """Files are named by plain names, of which every one that is read has its hash."""
    needed = {"*"} if manifest["form"] in ONE_FILE else set(manifest["assignments"])
    if set(manifest["files"]) != needed:
        raise ExportError(f"files names {len(manifest['files'])} widths; expected {len(needed)}, one for each")
    for name, wanted in manifest["hashes"].items():
        check(wanted, str, f"hashes.{name}", ExportError)
        if not _is_inside(name):
            raise ExportError(f"hashes names {name[:100]!r}; expected names of files inside the folder")
    for name in (*manifest["files"].values(), *([WIDTHS] if manifest["form"] == "switchable" else [])):
        check(name, str, "files", ExportError)
        if name not in manifest["hashes"] and not any(own.startswith(f"{name}/") for own in manifest["hashes"]):
            raise ExportError(f"hashes does not name {name[:100]!r}; expected every file that is read")


def _is_inside(name: str) -> bool:
    """A relative path in its shortest form, and not that of the manifest."""
    plain = "\\" not in name and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))
    return plain and name != MANIFEST


def check_place(folder: Path) -> None:
    """ExportError where an export would replace anything but an earlier export."""
    if folder.is_file():
        others = ["a file"]
    else:
        own = _files_of(folder)
        held = sorted(folder.iterdir()) if folder.exists() else []
        others = [path.name for path in held if path.name not in own or not _is_file_of(path)]
    if others:
        raise ExportError(
            f"cannot export to '{folder}': found {others[0]!r} there; expected a new folder, an empty one or one that "
            f"holds an earlier export and nothing else. Choose another folder."
        )


def _is_file_of(path: Path) -> bool:
    """A file, or a folder that is one file to its runtime."""
    return path.is_file() or (path.is_dir() and path.suffix in PACKAGES)


def _files_of(folder: Path) -> set[str]:
    """The files that an earlier export of any version wrote, by its own account."""
    try:
        manifest = read_object(folder / MANIFEST)
        if manifest["format"] != EXPORT.format:
            return set()
        beside = {name.partition("/")[0] for name in manifest["hashes"]}
        return {MANIFEST, WIDTHS, *manifest["files"].values(), *beside}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()
