"""`ptmq predict DIR IMAGE...`: the best classes of pictures at one width, by an artifact or an export of one."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.device.passes import compute
from ptmq_lightning.device.pictures import open_picture, preprocessing_of
from ptmq_lightning.export.folder import MANIFEST
from ptmq_lightning.export.session import Session
from ptmq_lightning.runtime.decode import SUFFIXES
from ptmq_lightning.runtime.errors import DataError
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.model import MultiBitModel

Best = list[tuple[int, float]]  # classes and their shares of the softmax, the best first


def predict(options: argparse.Namespace) -> Iterator[str]:
    """A line for each picture: the best classes and their shares of the softmax.

    Raises:
        DataError: a path that leads nowhere, a folder without pictures, or a file that is none.
    """
    model = _opened(options.folder)
    if options.bits is not None:
        model.switch(options.bits)
    preprocessing = preprocessing_of(model.info)
    shown = _as_json if options.json else _as_text
    for path in pictures(options.images):
        logits = compute(model, open_picture(path, preprocessing).unsqueeze(0))[0]  # (classes,)
        best = logits.softmax(0).topk(min(options.top, len(logits)))
        yield shown(path, list(zip(best.indices.tolist(), best.values.tolist(), strict=True)), model.info)


def _opened(folder: Path) -> MultiBitModel | Session:
    """An artifact, or an export in its runtime."""
    return Session(folder) if (folder / MANIFEST).exists() else load(folder).run_in_place()


def pictures(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are, and of a folder every picture at any depth but in hidden folders, by name."""
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no '{path}'; expected a picture, or a folder of pictures")
        found = sorted(_inside(path)) if path.is_dir() else [path]
        if not found:
            raise DataError(f"'{path}' holds no pictures; expected files named {', '.join(SUFFIXES)}")
        yield from found


def _inside(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in files if name.lower().endswith(SUFFIXES) and name[0] != ".")


def _as_text(path: Path, best: Best, info: ModelInfo) -> str:
    shares = (f"{_name(info, index) or f'class {index}'} {100 * share:.1f} %" for index, share in best)
    return f"{path}: " + ", ".join(shares)


def _as_json(path: Path, best: Best, info: ModelInfo) -> str:
    classes = [{"index": index, "name": _name(info, index) or None, "share": share} for index, share in best]
    return json.dumps({"image": str(path), "classes": classes})


def _name(info: ModelInfo, index: int) -> str:
    return info.classes[index] if index < len(info.classes) else ""
