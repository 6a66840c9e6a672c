"""The last lines of a run: where its table, page and model are, and what to do with them."""

from __future__ import annotations

import os
from pathlib import Path

from ptmq_lightning.report.keys import OFFLINE

FILES = (("page", "report.html"), ("table", "results.json"), ("model", "model"))
NEXT = ("predict {} PICTURES --bits 4", "export {} --images PICTURES", "bench {}")


def ending(folder: Path) -> str:
    """Empty where the folder holds no run: an export alone says itself what it wrote."""
    place = Path(os.path.relpath(folder)) if folder.is_relative_to(Path.cwd()) else folder
    if not (folder / "results.json").exists():
        return ""
    lines = [f"{what:<6} {place / name}" for what, name in FILES if (folder / name).exists()]
    if (folder / "model" / "manifest.json").exists():
        words = [f"ptmq {command.format(place / 'model')}" for command in NEXT]
        words += [f"wandb sync {place / run.relative_to(folder)}" for run in folder.glob(OFFLINE)]
        lines += [f"{'next' if number == 0 else '':<6} {word}" for number, word in enumerate(words)]
    return "\n".join(["", *lines])
