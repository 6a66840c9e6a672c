"""What the classes of a source are called, by their index."""

from __future__ import annotations

from collections.abc import Mapping

from timm.data.imagenet_info import ImageNetInfo

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def names_of(classes: Mapping[str, int]) -> tuple[str, ...]:
    """From class folder -> index: the folders' names, in English where all of them are ImageNet's ids; "" where no
    folder has an index."""
    names = [""] * (max(classes.values(), default=-1) + 1)
    for name, index in classes.items():
        names[index] = name
    if all(name[:1] == "n" and name[1:].isdigit() for name in names if name):
        info = ImageNetInfo("imagenet-1k")
        spoken = {wnid: info.index_to_description(index) for index, wnid in enumerate(info.label_names())}
        names = [spoken.get(name, name) for name in names]
    return tuple(names)
