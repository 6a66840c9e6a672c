"""Where the images come from: folders, tars and Hugging Face data sets through timm, and the embedded digits.

Calibration (``train``) needs no labels and evaluation (``val``) needs them; no image is in both. A source is a folder
of class folders, a tar of them, or ``hfds/NAME[:SPLIT]``; ``root`` stands for both where its layout is the usual one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from timm.data.dataset_factory import create_dataset
from timm.data.imagenet_info import ImageNetInfo
from timm.data.readers.class_map import load_class_map
from timm.data.readers.img_extensions import get_img_extensions, set_img_extensions
from timm.utils.misc import natural_key

from ptmq_lightning.data.class_names import CIFAR10, names_of
from ptmq_lightning.data.digits import open_digits
from ptmq_lightning.data.images import UNLABELED, Images, class_folders
from ptmq_lightning.data.places import HUB_PREFIX, Request, locate, same
from ptmq_lightning.runtime.decode import SUFFIXES
from ptmq_lightning.runtime.errors import DataError
from ptmq_lightning.runtime.preprocessing import Preprocessing

log = logging.getLogger(__name__)

ANY = Preprocessing((3, 224, 224), (0.5,) * 3, (0.5,) * 3)


@dataclass(frozen=True)
class Sources:
    """Calibration and evaluation images of one run; items are (float tensor (3, H, W), int label).

    mapped: a class map numbers the classes, so that they may be some of the network's; else they are just counted.
    classes: their names, by index; "" for one that no folder has.
    """

    name: str
    train: Any
    val: Any
    num_classes: int
    origin: Mapping[str, str]
    mapped: bool = False
    classes: tuple[str, ...] = ()

    def prepared_for(self, preprocessing: Preprocessing) -> Sources:
        """The same images, as a network wants them."""
        train, val = (part.prepared_for(preprocessing) for part in (self.train, self.val))
        return replace(self, train=train, val=val)

    def describe(self) -> dict[str, Any]:
        """What was opened, JSON-able, for the run's record."""
        return {
            "name": self.name,
            **self.origin,
            "train_images": len(self.train),
            "val_images": len(self.val),
            "num_classes": self.num_classes,
        }


def open_data(name: str, *, preprocessing: Preprocessing = ANY, seed: int = 0, **keys: Any) -> Sources:
    """Open the data group ``name``.

    Args:
        name: imagenet, imagefolder, cifar10 or digits.
        preprocessing: the network's; images come out ready for it. Where no network is there yet, `prepared_for` makes
            them so later.
        seed: of the evaluation subset, and of the division where both sources are one. Runs that are to be compared
            over learning seeds keep this one fixed.
        keys: root, train, val, class_map (paths), val_images and calibration_images (counts), as in ``Request``.

    Raises:
        DataError: unknown name, missing files, too few images, labels that cannot be numbered: one message with the
        cure.
    """
    if name not in OPENERS:
        raise DataError(f"data={name!r} is not known; expected one of {', '.join(sorted(OPENERS))}")
    return OPENERS[name](Request(name, preprocessing, seed, **{key: _text(value) for key, value in keys.items()}))


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _open_digits(request: Request) -> Sources:
    given = {"root": request.root, "train": request.train, "val": request.val, "class_map": request.class_map}
    if found := next((key for key, value in given.items() if value is not None), None):
        raise DataError(
            f"data=digits has images of its own, but data.{found}={given[found]} was given; set "
            "data=imagenet, imagefolder or cifar10 to read those"
        )
    train, val = open_digits(request.preprocessing)
    origin = {"train": "scikit-learn digits, training part", "val": "scikit-learn digits, evaluation part"}
    return Sources(request.name, train, _subset(val, request), 10, origin, classes=tuple("0123456789"))


def _open_imagenet(request: Request) -> Sources:
    wnids = {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    return _open_folders(request, default_map=wnids)


def _open_cifar10(request: Request) -> Sources:
    sources = _open_folders(request)
    if sources.num_classes != 10:
        raise DataError(
            f"data=cifar10: {sources.num_classes} class folders found, expected the 10 classes of CIFAR-10; "
            "use data=imagefolder for other images"
        )
    return replace(sources, classes=CIFAR10 if sources.classes == tuple("0123456789") else sources.classes)


def _open_folders(request: Request, default_map: Mapping[str, int] | None = None) -> Sources:
    places = locate(request)
    readers = {part: _reader(places[part], part) for part in ("train", "val")}
    hub = places["val"].startswith(HUB_PREFIX)
    mapped = _class_map(request) or (None if hub else default_map)
    own = class_folders(readers["val"]) if hub else None  # a hub data set numbers its own classes
    classes = mapped or own or _common_classes(request, readers)
    _require_labels(request, readers["val"], classes, places["val"])
    opened = {
        part: Images(reader, request.preprocessing, name=f"data.{part}={places[part]}", classes=classes)
        for part, reader in readers.items()
    }
    train, val = opened["train"], opened["val"]
    if same(places["train"], places["val"]):
        train, val = _divide(val, request)
    else:
        val = _subset(val, request)
    count = max(classes.values()) + 1
    return Sources(request.name, train, val, count, places, mapped is not None, names_of(classes))


OPENERS: dict[str, Callable[[Request], Sources]] = {
    "imagenet": _open_imagenet,
    "imagefolder": _open_folders,
    "cifar10": _open_cifar10,
    "digits": _open_digits,
}


def _reader(place: str, part: str) -> Any:
    """timm's reader of one place; labels are numbered by the place's own folders."""
    try:
        if place.startswith(HUB_PREFIX):
            name, _, split = place.partition(":")
            return create_dataset(name, split=split).reader
        with _all_suffixes():
            reader = create_dataset("", root=place, search_split=False).reader
    except Exception as error:  # timm's readers raise whatever the place leads to
        raise DataError(
            f"data.{part}={place} cannot be read as images ({type(error).__name__}: {error}); "
            "expected a folder of class folders, a .tar of them or hfds/NAME:SPLIT"
        ) from error
    if os.path.isdir(place):
        _leave_out_hidden(reader, place)
        _check_links(reader, f"data.{part}={place}")
    return reader


@contextmanager
def _all_suffixes() -> Iterator[None]:
    """timm's readers take every suffix that is read here; its own list is restored afterwards."""
    before = get_img_extensions()
    set_img_extensions(SUFFIXES)
    try:
        yield
    finally:
        set_img_extensions(before)


def _leave_out_hidden(reader: Any, place: str) -> None:
    """Folders such as .ipynb_checkpoints are no classes."""
    inside = [os.path.relpath(path, place).split(os.sep) for path, _ in reader.samples]
    hidden = [any(part.startswith(".") for part in parts) for parts in inside]
    if any(hidden):
        names = {number: name for name, number in reader.class_to_idx.items()}
        kept = [(path, names[n]) for (path, n), out in zip(reader.samples, hidden, strict=True) if not out]
        order = sorted({name for _, name in kept}, key=natural_key)
        reader.class_to_idx = {name: number for number, name in enumerate(order)}
        reader.samples = [(path, reader.class_to_idx[name]) for path, name in kept]
        log.info("%s: %d pictures in hidden folders are left out", place, sum(hidden))


def _check_links(reader: Any, name: str) -> None:
    if dangling := [path for path, _ in reader.samples if not os.path.exists(path)]:
        raise DataError(
            f"{name}: {len(dangling)} links lead nowhere (first: {dangling[0]}); expected pictures. Remove the links, "
            "or bring back what they lead to"
        )


def _class_map(request: Request) -> Mapping[str, int] | None:
    """Class folder -> index from data.class_map, or from class_map.txt beside the data; None where there is neither."""
    path = request.class_map
    if path is None and request.root is not None and os.path.exists(os.path.join(request.root, "class_map.txt")):
        path = os.path.join(request.root, "class_map.txt")
    if path is None:
        return None
    if not os.path.isfile(path) or not path.endswith(".txt"):
        raise DataError(
            f"data.class_map={path} is not a text file; expected one class folder's name a line, "
            "the line's number (from 0) being the class"
        )
    loaded: Mapping[str, int] = load_class_map(path)
    return loaded


def _common_classes(request: Request, readers: Mapping[str, Any]) -> Mapping[str, int]:
    """Without a map: folders in natural order; where one source holds more of them, it numbers both."""
    train, val = (set(class_folders(readers[part])) for part in ("train", "val"))
    if train & val and not (train <= val or val <= train):
        raise DataError(
            f"data={request.name}: the class folders of data.train ({len(train)}) and data.val ({len(val)}) differ, "
            "so neither numbers the classes; set data.class_map=FILE with one folder name a line"
        )
    names = max(val, train, key=len) if train & val else val
    return {name: index for index, name in enumerate(sorted(names, key=natural_key))}


def _require_labels(request: Request, reader: Any, classes: Mapping[str, int], place: str) -> None:
    if not set(class_folders(reader)) - {""}:
        raise DataError(
            f"data.val={place} has images but no classes; evaluation wants each image in a folder named by its class"
        )
    unknown = sorted(name for name in class_folders(reader) if classes.get(name, UNLABELED) == UNLABELED)
    if unknown:
        shown = ", ".join(repr(name) for name in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        raise DataError(
            f"data={request.name}: {len(unknown)} class folders of data.val={place} are not in the "
            f"class map ({shown}); "
            "set data.class_map=FILE with one folder name a line"
        )


def _subset(val: Any, request: Request) -> Any:
    """A seeded choice of data.val_images images, in the source's order; all of them where the key is unset."""
    if request.val_images is None:
        return val
    chosen = permutation(len(val), request.seed)[: _at_most(request.val_images, val, "data.val_images", "data.val")]
    return val.take(sorted(chosen))


def _divide(both: Images, request: Request) -> tuple[Images, Images]:
    """Disjoint calibration and evaluation images of one source."""
    total, calibration = len(both), request.calibration_images or 1
    evaluation = total - calibration if request.val_images is None else request.val_images
    if evaluation < 1 or evaluation + calibration > total:
        raise DataError(
            f"data.train and data.val are one source of {total} images, too few for {calibration} calibration and "
            f"{max(evaluation, 1)} evaluation images without overlap; lower data.calibration_images or data.val_images"
        )
    order = permutation(total, request.seed)
    return both.take(sorted(order[evaluation:])), both.take(sorted(order[:evaluation]))


def permutation(count: int, seed: int) -> list[int]:
    """A seeded permutation of 0..count-1. numpy's RandomState stream is frozen, on every platform (NEP 19)."""
    order: list[int] = np.random.RandomState(seed).permutation(count).tolist()
    return order


def _at_most(wanted: int, dataset: Sized, key: str, source: str) -> int:
    if not 1 <= wanted <= len(dataset):
        raise DataError(
            f"{key}={wanted}, but {source} holds {len(dataset)} images; set {key} between 1 and {len(dataset)}"
        )
    return wanted
