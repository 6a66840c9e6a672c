"""JSON files that say which format they have, and folders that such a file seals with hashes.

A sealed file holds `format`, `version`, what is its own, and last `sha256`: the SHA-256 of itself without that key. The
hashes find damage, not forgery. Standard library alone, so that a folder can be looked at without torch.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptmq_lightning.runtime.errors import PTMQError

# What a file may ask of its reader. The largest manifest of 84 timm networks has half a megabyte.
MOST_BYTES, MOST_CHARACTERS, MOST_DEPTH = 16 << 20, 4096, 32


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises OSError where it cannot be read, and ValueError for anything but an object within the limits above whose
    numbers are finite and have at most 64 bits.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file")  # a pipe would never end
    if path.exists() and path.stat().st_size > MOST_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, expected at most {MOST_BYTES:,}")
    try:
        found = json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"found a {type(found).__name__}, expected an object")
    _check_extent(found, 0)
    return found


def _check_extent(value: Any, depth: int) -> None:
    if depth > MOST_DEPTH:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str) and len(value) > MOST_CHARACTERS:
        raise ValueError(f"it holds a text of {len(value):,} characters, expected at most {MOST_CHARACTERS:,}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds the number {value}, expected finite ones")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"it holds a whole number of {value.bit_length()} bits, expected at most 64")
    for inner in (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_extent(inner, depth + 1)


def difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str | None:
    """How a file names its format and how it should ("version 2; expected version 3"); None where both are equal."""
    if all(found.get(key) == value for key, value in expected.items()):
        return None
    return f"{_listed({key: found.get(key) for key in expected})}; expected {_listed(expected)}"


def _listed(stamp: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in stamp.items())


def digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object without its own hash, as Python's `json.dumps` writes it."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError, also for what is no regular file."""
    if path.exists() and (path.is_symlink() or not path.is_file()):
        raise OSError("it is no regular file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Sealed:
    """A kind of sealed folder.

    file: the name of its sealing file. error: raised for a folder that is none of this kind. cannot: how a message
    begins. older: what to do about another version. again: what to do about damage.
    """

    format: str
    version: int
    file: str
    error: type[PTMQError]
    cannot: str
    older: str
    again: str

    def stamped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The content of the sealing file: format, version, values, hash."""
        whole = {"format": self.format, "version": self.version, **values}
        return whole | {"sha256": digest(whole)}

    def read(self, folder: Path) -> dict[str, Any]:
        """The content of the sealing file; raises `error` where it is missing, altered or of another version."""
        try:
            manifest = read_object(folder / self.file)
        except OSError as error:
            raise self.unreadable(folder, self.file, error) from error
        except ValueError as error:
            raise self.failed(folder, f"{self.file} is no JSON object ({error}). {self.again}") from error
        if other := difference(manifest, {"format": self.format, "version": self.version}):
            raise self.failed(folder, f"{self.file} has {other}. {self.older}")
        self.compare(folder, self.file, digest(manifest), str(manifest.get("sha256")))
        return manifest

    def compare(self, folder: Path, name: str, found: str, wanted: str) -> None:
        """Raise `error` where a file's SHA-256 is not the one that was written down."""
        if found != wanted:
            raise self.failed(
                folder,
                f"{name} was altered, its SHA-256 is {found[:12]}...; expected {wanted[:12]}.... {self.again}",
            )

    def unreadable(self, folder: Path, name: str, error: OSError) -> PTMQError:
        """What to raise for a file that the system does not let us read."""
        why = "it is missing" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        cure = "" if isinstance(error, FileNotFoundError) else " Check who may read it and the disk it is on."
        return self.failed(
            folder, f"{name} cannot be read ({why}); expected every file that was written. {self.again}{cure}"
        )

    def failed(self, folder: Path, why: str) -> PTMQError:
        """What to raise: the folder and the reason."""
        return self.error(f"{self.cannot} '{folder}': {why}")
