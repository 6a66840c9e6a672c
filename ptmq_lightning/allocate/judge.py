"""What an assignment does to the answers of the whole network, on images held in memory. Labels are not needed.

B batch, C classes, N images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ptmq_lightning.allocate.divergence import kl_of_images
from ptmq_lightning.allocate.sensitivity import reference
from ptmq_lightning.runtime.model import MultiBitModel, at_bits
from ptmq_lightning.runtime.spec import BitAssignment


@dataclass(frozen=True)
class Answers:
    """divergence: mean KL from the reference. agreement: percent with its class. top1: percent, None without labels."""

    divergence: float
    agreement: float
    top1: float | None


class Judge:
    """Compares a model's answers with those of its float network, or of its widest pair where it has none.

    Args:
        model: its current selection is the same after each question.
        images: (N, C, H, W).
        labels: (N,); None: unknown.
        batch: images at a time.
    """

    @torch.inference_mode()
    def __init__(self, model: MultiBitModel, images: Tensor, labels: Tensor | None = None, batch: int = 64) -> None:
        self.model, self.labels, self.images = model, labels, images.split(batch)
        with reference(model):
            self.expected = self._answers()
        self.classes = torch.cat(self.expected).argmax(1)  # (N,)
        self.top1 = self._top1(self.classes)
        self._known: dict[BitAssignment, tuple[Answers, Tensor]] = {}

    @property
    def measures(self) -> str:
        """What `drop` counts."""
        return "agreement with float" if self.labels is None else "top-1"

    @property
    def asked(self) -> int:
        """How many different assignments the model was run at."""
        return len(self._known)

    def ask(self, assignment: BitAssignment) -> Answers:
        """How the model answers at an assignment; asked again, it is not run again."""
        return self._found(assignment)[0]

    def divergences(self, assignment: BitAssignment) -> Tensor:
        """The KL of each image, float64 (N,), whose mean `ask` tells."""
        return self._found(assignment)[1]

    @torch.inference_mode()
    def _found(self, assignment: BitAssignment) -> tuple[Answers, Tensor]:
        if assignment not in self._known:
            with at_bits(self.model, assignment):
                found = self._answers()
            classes, of_images = torch.cat(found).argmax(1), kl_of_images(self.expected, found)
            agreement = 100 * float((classes == self.classes).double().mean())
            self._known[assignment] = Answers(float(of_images.mean()), agreement, self._top1(classes)), of_images
        return self._known[assignment]

    def drop(self, assignment: BitAssignment) -> float:
        """Points of top-1 that are lost, or without labels percent of the images whose class changes."""
        answers = self.ask(assignment)
        if answers.top1 is None or self.top1 is None:
            return 100 - answers.agreement
        return self.top1 - answers.top1

    def _answers(self) -> list[Tensor]:
        """Log-probabilities (B, C) of each batch."""
        return [log_softmax(self.model(x), dim=1) for x in self.images]

    def _top1(self, classes: Tensor) -> float | None:
        return None if self.labels is None else 100 * float((classes.cpu() == self.labels.cpu()).double().mean())
