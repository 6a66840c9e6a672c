"""Accuracy of one multi-bit model at many bit assignments, beside its own float network.

Top-1 and top-5 need labels; the agreement with the float network and the error of the logits need none and are the
sharper figures on few images (PTMQ §9.1). B batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from ptmq_lightning.evaluation.cost import bit_ops, layer_macs, size_bytes
from ptmq_lightning.runtime.errors import DataError, ModelError
from ptmq_lightning.runtime.info import Evaluation, Row
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, device_of, passthrough
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

CHUNK_BYTES = 512 * 2**20  # images held at once, so that weights are derived once per assignment and chunk

Batch = tuple[Tensor, Tensor]


def measure_accuracy(
    model: MultiBitModel,
    loader: Iterable[Batch],
    which: Sequence[Any],
    *,
    float_network: nn.Module | None = None,
    progress: Callable[[int, str], None] | None = None,
) -> Evaluation:
    """Run the float network and every assignment of ``which`` over ``loader``, which is read once.

    Args:
        model: the multi-bit model; its current selection is the same afterwards.
        loader: batches of images (B, 3, H, W) and labels (B,).
        which: anything ``model.resolve`` knows: 4, "w4a8", "mixed_4.0", an assignment.
        float_network: what agreement and errors are measured against, on the model's device; by default the model with
            its quantizers off, which is the float network on the latent grid.
        progress: called with (images done, assignment's name) after each assignment of each chunk of images.

    Raises:
        DataError: no images, or labels beyond the network's classes.  ModelError: logits that are not finite.
    """
    for item in which:
        model.resolve(item)  # an unknown width or name is refused before any image is read
    names = [row_name(model, item) for item in which]
    device = device_of(model)
    reference: Tally | None = None
    tallies: list[Tally] = []
    example = None
    for chunk in _chunks(loader):
        images = [batch[0].to(device) for batch in chunk]
        labels = [batch[1].to(device) for batch in chunk]
        with passthrough(model):
            fp = _logits(float_network or model, images, "the float network")
        if reference is None:
            reference, *tallies = (Tally(fp[0].shape[1], device) for _ in range(len(names) + 1))
            example = images[0][:1]
        reference.add(fp, fp, labels)
        for item, name, tally in zip(which, names, tallies, strict=True):
            with at_bits(model, item):
                tally.add(_logits(model, images, name), fp, labels)
            if progress is not None:
                progress(tally.images, name)
    if reference is None or example is None:
        raise DataError("the evaluation loader gave no images; set data.val or data.val_images")
    macs = layer_macs(model, example)
    rows = [_row(model, item, name, tally, macs) for item, name, tally in zip(which, names, tallies, strict=True)]
    return Evaluation({"top1": reference.top(1), "top5": reference.top(5)}, rows, reference.images)


def row_name(model: MultiBitModel, which: Any) -> str:
    """The name a row carries: 4 -> "w4a4", a stored assignment's name, else its average bits."""
    if not isinstance(which, BitAssignment | Mapping):
        return which if isinstance(which, str) else str(BitWidth.parse(which))
    wanted = model.resolve(which)
    stored = (name for name, assignment in model.assignments.items() if assignment == wanted)
    return next(stored, "average_w{:.2f}a{:.2f}".format(*wanted.average(model)))


def _chunks(loader: Iterable[Batch]) -> Iterator[list[Batch]]:
    """The loader's batches, gathered into lists of about CHUNK_BYTES of images."""
    chunk: list[Batch] = []
    held = 0
    for images, labels in loader:
        chunk.append((images, labels))
        held += images.nbytes
        if held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


@torch.inference_mode()
def _logits(model: nn.Module, images: list[Tensor], name: str) -> list[Tensor]:
    """Logits (B, C) of each batch."""
    logits = [model(batch).float() for batch in images]
    if not all(bool(batch.isfinite().all()) for batch in logits):
        raise ModelError(
            f"logits at {name} are not finite; expected finite logits: check the network's weights "
            "and the activation steps"
        )
    return logits


class Tally:
    """Running figures of one assignment over batches."""

    def __init__(self, classes: int, device: torch.device) -> None:
        def accuracy(k: int) -> MulticlassAccuracy:
            return MulticlassAccuracy(num_classes=max(classes, 2), top_k=k, average="micro").to(device)

        self.classes = classes
        self.images = 0
        self.correct = {k: accuracy(k) for k in (1, 5) if k <= classes}
        self.same = accuracy(1)
        self.signal = torch.zeros((), dtype=torch.float64)  # sum fp^2
        self.noise = torch.zeros((), dtype=torch.float64)  # sum (fp - q)^2

    def add(self, logits: list[Tensor], fp: list[Tensor], labels: list[Tensor]) -> None:
        """Add batches of logits (B, C), float logits (B, C) and labels (B,)."""
        for q, f, label in zip(logits, fp, labels, strict=True):
            if int(label.max()) >= self.classes or int(label.min()) < 0:
                raise DataError(
                    f"evaluation labels run from {int(label.min())} to {int(label.max())}, but the "
                    f"network has {self.classes} "
                    "classes; set data.class_map so that class folders get the network's own class numbers"
                )
            for metric in self.correct.values():
                metric.update(_two_classes(q), label)
            self.same.update(_two_classes(q), f.argmax(1))
            self.signal += f.double().square().sum().cpu()
            self.noise += (f.double() - q.double()).square().sum().cpu()
            self.images += len(label)

    def top(self, k: int) -> float | None:
        """Top-k accuracy in percent; None below k classes."""
        return _percent(self.correct[k]) if k in self.correct else None

    def agreement(self) -> float:
        """Share of images with the float network's top-1 class, in percent."""
        return _percent(self.same)

    def logit_error(self) -> float:
        """sum (fp - q)^2 / sum fp^2 over all images and classes."""
        return float(self.noise / self.signal.clamp_min(torch.finfo(torch.float64).tiny))

    def sqnr_db(self) -> float | None:
        """10 log10(sum fp^2 / sum (fp - q)^2); None for equal logits."""
        error = self.logit_error()
        return -10 * math.log10(error) if error > 0 else None


def _two_classes(logits: Tensor) -> Tensor:
    """Beside a single class one that is never chosen: torchmetrics counts from two classes on."""
    return logits if logits.shape[1] > 1 else torch.nn.functional.pad(logits, (0, 1), value=-math.inf)


def _percent(metric: MulticlassAccuracy) -> float:
    """A share in percent, without the noise of its float32 quotient."""
    return round(100 * float(metric.compute()), 4)


def _row(model: MultiBitModel, which: Any, name: str, tally: Tally, macs: dict[str, int]) -> Row:
    assignment = model.resolve(which)
    w_bits, a_bits = assignment.average(model)
    top1 = tally.top(1)
    assert top1 is not None  # every classifier has a first class
    return Row(
        config=name,
        w_bits=w_bits,
        a_bits=a_bits,
        top1=top1,
        top5=tally.top(5),
        agreement=tally.agreement(),
        sqnr_db=tally.sqnr_db(),
        logit_error=tally.logit_error(),
        size_bytes=size_bytes(model, assignment),
        bit_ops=bit_ops(macs, assignment, model.layers),
    )
