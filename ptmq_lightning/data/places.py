"""Where on disk (or on the Hugging Face hub) the two sources of a run lie, or one error that says what to set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ptmq_lightning.runtime.errors import DataError
from ptmq_lightning.runtime.preprocessing import Preprocessing

TRAIN_NAMES = ("train.tar", "train", "calib.tar", "calib")
VAL_NAMES = ("val.tar", "val", "validation")
HUB_PREFIX = "hfds/"


@dataclass(frozen=True)
class Request:
    """The keys of the data group, as given."""

    name: str
    preprocessing: Preprocessing
    seed: int
    root: str | None = None
    train: str | None = None
    val: str | None = None
    class_map: str | None = None
    val_images: int | None = None
    calibration_images: int | None = None


def locate(request: Request) -> dict[str, str]:
    """The two sources' places, or one error that names all that is missing."""
    found, problems = {}, []
    for part, names in (("train", TRAIN_NAMES), ("val", VAL_NAMES)):
        given = getattr(request, part)
        if given is None and request.root is not None:
            options = [os.path.join(request.root, name) for name in names]
            given = next((option for option in options if os.path.exists(option)), None)
            if given is None:
                problems.append(f"none of {', '.join(names)} in data.root={request.root}")
        elif given is None:
            problems.append(f"data.{part} is not set")
        elif not given.startswith(HUB_PREFIX) and not os.path.exists(given):
            problems.append(f"data.{part}={given} does not exist")
        elif given.startswith(HUB_PREFIX) and ":" not in given:
            given = f"{given}:{'train' if part == 'train' else 'validation'}"
        found[part] = given
    if problems:
        raise DataError(
            f"data={request.name}: {'; '.join(problems)}. Set data.root=DIR (holding {' or '.join(TRAIN_NAMES)} for "
            f"calibration and {' or '.join(VAL_NAMES)} for evaluation), or data.train=... and data.val=..., "
            "each a folder of class folders, a .tar of them or hfds/NAME:SPLIT"
        )
    _forbid_nesting(found["train"], found["val"])
    return found


def same(first: str, second: str) -> bool:
    """Whether two names lead to one source."""
    return os.path.realpath(first) == os.path.realpath(second)


def _forbid_nesting(train: str, val: str) -> None:
    if train.startswith(HUB_PREFIX) or val.startswith(HUB_PREFIX) or same(train, val):
        return
    outer, inner = sorted((Path(train).resolve(), Path(val).resolve()), key=lambda path: len(path.parts))
    if outer in inner.parents:
        raise DataError(
            f"data.train={train} and data.val={val} overlap: one folder lies in the other; give two separate folders, "
            "or the same one for both (disjoint images are then drawn from it)"
        )
