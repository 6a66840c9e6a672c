"""Files and folders that appear whole or not at all, whatever stops the program while it writes them.

What is being written stands beside its place as `.NAME.<8 hex digits>.part`. A folder that is being replaced is called
`.NAME.<8 hex digits>.old` between the two renames: a kill there leaves it under a name that `set_aside` finds.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PART, OLD = "part", "old"


def write_atomically(path: Path, data: str | bytes) -> Path:
    """Write a file so that a reader finds what was there before or all of `data`, never half of it.

    Args:
        path: the file; its folder is made where it is missing.
        data: text is written as UTF-8.

    Returns:
        path.
    """
    with replacing_file(path) as part:
        part.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return path


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the name `path` at the end of the block and is removed where the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _beside(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(place: Path) -> Iterator[Path]:
    """A new folder to write to, which takes the name `place` at the end of the block.

    A folder that has the name goes then, and stays where the block or the renaming fails. place: absolute, no link.
    """
    part = _beside(place)
    part.mkdir(parents=True)
    try:
        yield part
        _give_name(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _give_name(part: Path, place: Path) -> None:
    old = part.with_suffix(f".{OLD}")
    if place.exists():
        place.rename(old)
    try:
        part.rename(place)
    except BaseException:  # also a key pressed
        if old.exists():
            old.rename(place)
        raise
    for left in set_aside(place):
        shutil.rmtree(left, ignore_errors=True)


def set_aside(place: Path) -> list[Path]:
    """The folders that were called `place` before replacements that were killed between the two renames, the latest
    last."""
    return sorted(_named(place.parent, re.escape(place.name), OLD), key=lambda path: path.stat().st_mtime)


def bring_back(place: Path) -> None:
    """Give the latest of `set_aside` its name again where no folder has it."""
    if not place.exists() and (left := set_aside(place)):
        left[-1].rename(place)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writes left in a folder in which nobody else is writing."""
    for left in _named(folder, r".+", PART):
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{PART}")


def _named(folder: Path, name: str, ending: str) -> list[Path]:
    pattern = re.compile(rf"\.{name}\.[0-9a-f]{{8}}\.{ending}")
    return [path for path in (folder.iterdir() if folder.is_dir() else ()) if pattern.fullmatch(path.name)]


def csv_text(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """What a CSV file of ours holds: a header, then the rows; None is an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
