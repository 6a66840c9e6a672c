"""What is exported, before a target's form: the planned graph and the numbers of every width."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmq_lightning.export.flow import Op, operations, record
from ptmq_lightning.export.onnx_convert import Converter
from ptmq_lightning.export.onnx_multi import multi
from ptmq_lightning.export.onnx_packed import packed, whole
from ptmq_lightning.export.plan import Plan, all_integer, plan
from ptmq_lightning.export.support import require_supported
from ptmq_lightning.export.targets import OnnxStatic
from ptmq_lightning.export.values import Array, parameters, store
from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.model import MultiBitModel, Which, at_bits, weights_of
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.weights import CommittedWeight


class Draft:
    """A planned network with the numbers of every exported width. images (N >= 2, C, H, W), preprocessed. pack: whether
    targets that can do so store narrow weights in their bits alone."""

    def __init__(
        self,
        model: MultiBitModel,
        images: Tensor,
        bits: Iterable[Which],
        *,
        early: bool = True,
        float_image: bool = False,
        pack: bool = True,
        target: OnnxStatic | None = None,
    ) -> None:
        """target: what it is for; its `early` and `integer` hold then, and what it lacks is refused."""
        _check_finished(model, images)
        self.model, self.images, self.pack = model, images, pack
        self.assignments = _named(bits, model)
        self.ops = _operations(model, images)
        if target is not None:
            require_supported(self.ops, target)
            early = target.early
        self.plan: Plan = plan(self.ops, early=early, image=early and not float_image)
        if target is not None and target.integer:
            all_integer(self.ops, self.plan)
        self._ranges()
        self.arrays = store(model, self.assignments)
        self.values: dict[str, dict[str, Array]] = {
            name: parameters(self.plan.table, self.arrays, assignment) for name, assignment in self.assignments.items()
        }

    def _ranges(self) -> None:
        """Least and largest value, over all widths, of the tensors that get 8 bits of the export's own."""
        watched = {op.name: quantizer for quantizer, op in self.plan.watched.items()}
        rows = self.plan.table.quantizers
        found = {quantizer: (0.0, 0.0) for quantizer in watched.values()}

        def keep(name: str, value: Tensor) -> None:
            if name in watched:
                low, high = found[watched[name]]
                found[watched[name]] = (min(low, float(value.min())), max(high, float(value.max())))

        for assignment in self.assignments.values() if watched else ():
            with at_bits(self.model, assignment):
                record(self.model, self.images, keep)
        if "image" in found:
            found["image"] = _pixel_range(self.model, found["image"])
        for quantizer, ends in found.items():
            rows[quantizer] = replace(rows[quantizer], range=ends)

    def static(self, name: str, *, clip: str = "codes", pack: bool = True) -> Any:
        """The graph of one width as an ONNX ModelProto; pack: weights narrower than 8 bits take their bits alone."""
        made = Converter(self.plan, self.values[name], clip=clip, weight=packed if pack else whole)
        return made.network(self.ops, {"ptmq.width": name})

    def switchable(self) -> Any:
        """The graph of all widths: what differs between them is an input."""
        first = next(iter(self.values.values()))
        return Converter(self.plan, first, self.differing()).network(self.ops, {"ptmq.form": "switchable"})

    def multi(self) -> Any:
        """The graph of all widths: a branch for each, with packed weights that they share."""
        return multi(self)

    def differing(self) -> list[str]:
        first, *others = self.values.values()
        return [key for key, value in first.items() if any(not np.array_equal(value, o[key]) for o in others)]


def _pixel_range(model: MultiBitModel, seen: tuple[float, float]) -> tuple[float, float]:
    """Black to white after the network's preprocessing where that is known, and what was seen."""
    ends = model.info.preprocessing.pixel_ends() if model.info.preprocessing else []
    return min(seen[0], *ends, 0.0), max(seen[1], *ends, 0.0)


def _named(bits: Iterable[Which], model: MultiBitModel) -> dict[str, BitAssignment]:
    """What is exported, by names that tell different assignments apart: the second "custom" is "custom_2"."""
    found: dict[str, BitAssignment] = {}
    for which in bits:
        assignment, name = model.resolve(which), _name(which, model)
        taken = model.assignments | found
        names = (name if number == 1 else f"{name}_{number}" for number in count(1))
        found[next(free for free in names if taken.get(free, assignment) == assignment)] = assignment
    return found


def _name(which: Which, model: MultiBitModel) -> str:
    if isinstance(which, str) and which in model.assignments:
        return which
    if not isinstance(which, (BitAssignment, Mapping)):
        return str(BitWidth.parse(which))
    assignment = model.resolve(which)
    uniform = (width for width in model.pairs if BitAssignment.uniform(*width, model) == assignment)
    return str(next(uniform, "custom"))


def _check_finished(model: MultiBitModel, images: Tensor) -> None:
    for name, weight in weights_of(model):
        if not isinstance(weight, CommittedWeight):
            raise ExportError(
                f"the weight {name} is a {type(weight).__name__}; expected a committed one. Commit the "
                f"reconstruction, or export a loaded artifact."
            )
    if images.dim() != 4 or len(images) < 2 or images.dtype != torch.float32:
        raise ExportError(
            f"found images of shape {tuple(images.shape)} and type {images.dtype}; expected at least two preprocessed "
            f"ones, (N, C, H, W) float32. Give some tens of real images."
        )


def _operations(model: MultiBitModel, images: Tensor) -> list[Op]:
    try:
        return operations(model, images)
    except RuntimeError as error:  # torch's, of sizes that do not fit
        raise ExportError(
            f"the network does not run on images of shape {tuple(images.shape)} ({str(error).splitlines()[0]}); "
            f"expected the channels and size that it was made for. Prepare the images so."
        ) from error
