"""`ptmq predict DIR IMAGE...`: the best classes of pictures at one width."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.device.passes import compute
from ptmq_lightning.device.pictures import open_picture, preprocessing_of
from ptmq_lightning.runtime.info import ModelInfo


def predict(options: argparse.Namespace) -> Iterator[str]:
    """A line for each picture: the best classes and their shares of the softmax."""
    model = load(options.folder).run_in_place()
    if options.bits is not None:
        model.switch(options.bits)
    preprocessing = preprocessing_of(model.info)
    for path in options.images:
        logits = compute(model, open_picture(path, preprocessing).unsqueeze(0))[0]  # (classes,)
        best = logits.softmax(0).topk(min(options.top, len(logits)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield f"{path}: " + ", ".join(f"{_name(model.info, index)} {100 * share:.1f} %" for index, share in found)


def _name(info: ModelInfo, index: int) -> str:
    return info.classes[index] if index < len(info.classes) else f"class {index}"
