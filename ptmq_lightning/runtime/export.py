"""A multi-bit model for other runtimes, checked against the simulation before it is there.

    export(model, "export", images, ["w8a8", "w4a4"], form="switchable")

Forms: static, a file per width, the smallest; switchable, ONE graph whose integer weights, scales and biases are
inputs, with the exported widths' integers beside it. Backends: onnx (ONNX Runtime), openvino (static).
The folder: export.json with the hashes of all files, the graphs, and for the switchable form widths.safetensors.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from ptmq_lightning.runtime.artifact import give_name
from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.export_folder import WIDTHS, check_place, write_manifest
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.flow import Op, operations, record
from ptmq_lightning.runtime.model import MultiBitModel, Which, at_bits, weights_of
from ptmq_lightning.runtime.onnx_convert import CLIPS, Converter
from ptmq_lightning.runtime.onnx_plan import Plan, plan
from ptmq_lightning.runtime.onnx_values import Array, parameters, store
from ptmq_lightning.runtime.parity import WidthReport, compare, layer_steps
from ptmq_lightning.runtime.portable import as_portable
from ptmq_lightning.runtime.session import Session
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.weights import CommittedWeight

FORMS, BACKENDS, WEIGHTS = ("static", "switchable"), ("onnx", "openvino"), ("signed", "portable")


class Draft:
    """A planned network with the numbers of every exported width. images (N >= 2, C, H, W), preprocessed."""

    def __init__(
        self,
        model: MultiBitModel,
        images: Tensor,
        bits: Iterable[Which],
        *,
        early: bool = True,
        float_image: bool = False,
    ) -> None:
        _check_finished(model, images)
        self.model, self.images = model, images
        self.assignments = _named(bits, model)
        self.ops = _operations(model, images)
        self.plan: Plan = plan(self.ops, early=early, image=early and not float_image)
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

    def static(self, name: str, *, clip: str = "codes") -> Any:
        """The graph of one width as an ONNX ModelProto."""
        return Converter(self.plan, self.values[name], clip=clip).network(self.ops, {"ptmq.width": name})

    def switchable(self) -> Any:
        """The graph of all widths: what differs between them is an input."""
        first = next(iter(self.values.values()))
        return Converter(self.plan, first, self.differing()).network(self.ops, {"ptmq.form": "switchable"})

    def differing(self) -> list[str]:
        first, *others = self.values.values()
        return [key for key, value in first.items() if any(not np.array_equal(value, o[key]) for o in others)]


def export(
    model: MultiBitModel,
    folder: Path | str,
    images: Tensor,
    bits: Iterable[Which] | None = None,
    *,
    form: str = "static",
    backend: str = "onnx",
    weights: str = "signed",
    float_image: bool = False,
) -> dict[str, WidthReport]:
    """Write `folder`; what was written is compared with the simulation on `images` before it gets its name.

    images: (N >= 2, C, H, W), preprocessed; tens of real ones: ranges that the simulation has no quantiser for are
    taken from them. bits: widths and named assignments, None: all. weights: signed (the fastest where there is VNNI)
    or portable (`runtime.portable`: exact on every processor, in any program). float_image: keep the first layer of
    a convolutional network in float instead of rounding the image to 8 bits.

    Returns a report per width. Raises ExportError, and leaves nothing, for an operation that cannot be exported, a
    folder that cannot be used, or an export that does not compute the same. An earlier export in `folder` is replaced
    at the end, and stays if anything fails.
    """
    folder = Path(folder)
    place = folder.resolve()
    _check_asked(form, backend, weights)
    check_place(folder)
    asked: list[Which] = list(bits) if bits is not None else [*model.pairs, *model.assignments]
    draft = Draft(model, images, asked, early=backend == "onnx", float_image=float_image)
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    try:
        manifest = _write(draft, part, form, backend, weights)
        session = Session(part)
        reports = compare(draft, session)
        manifest["report"] = {name: asdict(report) for name, report in reports.items()}
        write_manifest(part, manifest)
        _refuse_other_results(draft, session, reports)
        check_place(folder)  # minutes may have passed
        give_name(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return reports


def _write(draft: Draft, folder: Path, form: str, backend: str, weights: str) -> dict[str, Any]:
    model = draft.model
    files = {"*": "model.onnx"} if form == "switchable" else {n: f"{n}.onnx" for n in draft.assignments}
    constants: list[str] = []
    for name, file in files.items():
        network = draft.switchable() if name == "*" else draft.static(name, clip=CLIPS[backend])
        stored = as_portable(network, backend) if weights == "portable" else network
        (folder / file).write_bytes(stored.SerializeToString())
    if form == "switchable":
        safetensors.numpy.save_file(draft.arrays, folder / WIDTHS)
        known = next(iter(draft.values.values()))
        constants = [tensor.name for tensor in network.graph.initializer if tensor.name in known]
    manifest = {
        "form": form,
        "backend": backend,
        "weights": weights,
        "old_processors": old_processors(draft, form, backend, weights),
        "files": files,
        "image_shape": list(draft.images.shape[1:]),
        "info": model.info,
        "pairs": model.pairs,
        "layers": [asdict(layer) for layer in model.layers.values()],
        "assignments": {name: assignment.to_json() for name, assignment in draft.assignments.items()},
        "table": draft.plan.table.to_json(),
        "constants": constants,
        "float_layers": draft.plan.floating,
    }
    write_manifest(folder, manifest)
    return manifest


def _pixel_range(model: MultiBitModel, seen: tuple[float, float]) -> tuple[float, float]:
    """Black to white after the network's preprocessing, and what was seen."""
    known = model.info.get("preprocessing", {})
    mean, std = known.get("mean", ()), known.get("std", ())
    ends = [(end - m) / s for end in (0.0, 1.0) for m, s in zip(mean, std, strict=True) if s]
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


def old_processors(draft: Draft, form: str, backend: str, weights: str) -> str:
    """What whoever runs the files without `Session` needs on an x86 processor without VNNI, where 8-bit sums may
    saturate (runtime.portable)."""
    products = any(op.key == "QuantMatmul" for op in draft.ops)
    if weights == "portable":
        return "exact on every processor"
    if backend == "onnx" and form == "static" and not products:
        return "without VNNI exact with the session option session.x64quantprecision=1"
    return "without VNNI exact only in Session; for other programs there export with weights=portable"


def _check_asked(form: str, backend: str, weights: str) -> None:
    if weights not in WEIGHTS:
        raise ExportError(f"found weights={weights!r}; expected one of {', '.join(WEIGHTS)}.")
    if form not in FORMS or backend not in BACKENDS or (backend == "openvino" and form == "switchable"):
        raise ExportError(
            f"found form={form!r} for backend {backend!r}; expected form static or switchable for onnx, and static for "
            f"openvino, which compiles its weights in."
        )
    require(backend, "onnx", "onnxruntime" if backend == "onnx" else "openvino")


def _operations(model: MultiBitModel, images: Tensor) -> list[Op]:
    try:
        return operations(model, images)
    except RuntimeError as error:  # torch's, of sizes that do not fit
        raise ExportError(
            f"the network does not run on images of shape {tuple(images.shape)} ({str(error).splitlines()[0]}); "
            f"expected the channels and size that it was made for. Prepare the images so."
        ) from error


def _refuse_other_results(draft: Draft, session: Session, reports: Mapping[str, WidthReport]) -> None:
    for name, report in reports.items():
        if not report.same:
            step = report.largest_step
            alone = "" if step is None else f"layer {report.worst_layer} by itself differs by {step:.2f} steps, "
            raise ExportError(
                f"the export computes other values than the simulation at {name}: {alone}the logits by "
                f"{report.logit_error:.3f} of their deviation; expected at most {WidthReport.STEPS} and "
                f"{WidthReport.LOGITS}. Nothing was written. {_cause(draft, session, name, report)}"
            )


def _cause(draft: Draft, session: Session, name: str, report: WidthReport) -> str:
    """Whether a difference comes of the processor, of the images or of the numbers themselves."""
    if (report.largest_step or 0.0) <= WidthReport.STEPS:
        return (
            "Every layer by itself agrees: the ranges of these images do not hold for the network as a whole. Check "
            "that they are real ones, prepared as the network wants them, and give more of them."
        )
    with at_bits(draft.model, draft.assignments[name]):
        other, _ = layer_steps(draft, name, session.manifest["backend"], portable=not session.portable)
    if max(other.values(), default=0.0) <= WidthReport.STEPS:
        return (
            "It is this processor: in the other form of integer arithmetic each layer agrees. Export with weights="
            f"{'signed' if session.portable else 'portable'}."
        )
    return (
        f"Neither form of integer arithmetic agrees, so that it is neither the processor nor the images: a step or a "
        f"bias of {report.worst_layer} is out of the range of 8 and 32-bit integers. Run `ptmq verify`, and report it."
    )
