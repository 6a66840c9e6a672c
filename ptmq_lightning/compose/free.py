"""How much memory a process may still take: of a GPU, or of the machine and of the control groups it runs in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")


def free_memory(device: torch.device, root: Path = ROOT) -> int | None:
    """Bytes; None where the system does not tell (it is no Linux).

    Args:
        root: under which proc/ and sys/ lie.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min([*_of_machine(root), *_of_groups(root)], default=None)


def _of_machine(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """What each control group of this process leaves it (a container's limit, a batch system's), up to the outermost:
    in version 1 and 2 of their files."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own = base / path.strip("/")
        for folder in [own, *own.parents]:
            limit, used = (_number(folder / name) for name in names)
            if limit is not None and used is not None:
                yield max(limit - used + _reclaimable(folder), 0)
            if folder == base:
                break


def _reclaimable(group: Path) -> int:
    """Files that the system drops as soon as memory is asked for."""
    stat = dict(line.split() for line in _lines(group / "memory.stat"))
    return int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))


def _number(file: Path) -> int | None:
    """None too where there is no limit ("max")."""
    text = "".join(_lines(file)).strip()
    return int(text) if text.isdigit() else None


def _lines(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8").splitlines()
    return []


def lies_in_memory(folder: Path, root: Path = ROOT) -> bool:
    """Whether files of a folder take memory, as in a tmpfs."""
    place, found, kind = folder.resolve(), Path("/"), ""
    for line in _lines(root / "proc/self/mounts"):
        _, mount, own = line.split(" ")[:3]
        if place.is_relative_to(mount) and Path(mount).is_relative_to(found):  # the innermost, and of two the later
            found, kind = Path(mount), own
    return kind in ("tmpfs", "ramfs")
