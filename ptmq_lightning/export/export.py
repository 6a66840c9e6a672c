"""A multi-bit model for other runtimes, checked against the simulation before it is there.

    write_export(model, "export", images, ["w8a8", "w4a4"], form="switchable")

Forms: static, a file per width, the smallest; multi, ONE file for all widths, which any program switches by an input;
switchable, ONE graph whose integer weights, scales and biases are inputs, with the exported widths' integers beside it.
Backends: onnx (ONNX Runtime), openvino (static). Each pair of the two is a class of `export.targets`.
The folder: export.json with the hashes of all files, the graphs, for the switchable form widths.safetensors and for the
multi form a README.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.folder import README, WEIGHTS, check_place, write_manifest
from ptmq_lightning.export.parity import WidthReport, compare, layer_steps
from ptmq_lightning.export.portable import as_portable
from ptmq_lightning.export.session import Session
from ptmq_lightning.export.targets import OnnxStatic, target_of
from ptmq_lightning.runtime.errors import ConfigError, ExportError
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.files import replacing_folder
from ptmq_lightning.runtime.model import MultiBitModel, Which, at_bits


def write_export(
    model: MultiBitModel,
    folder: Path | str,
    images: Tensor,
    bits: Iterable[Which] | None = None,
    *,
    form: str = "static",
    backend: str = "onnx",
    weights: str = "signed",
    float_image: bool = False,
    packed: bool = True,
    device: str | None = None,
) -> dict[str, WidthReport]:
    """Write `folder`; what was written is compared with the simulation on `images` before it gets its name.

    An earlier export in `folder` is replaced at the end, and stays if anything fails.

    Args:
        model: committed or rounded to nearest.
        images: (N >= 2, C, H, W), preprocessed; tens of real ones, as the ranges of tensors for which the simulation
            has no quantizer are taken from them.
        bits: widths and named assignments; None: all that the model has.
        form, backend: of a target of `export.targets`. "static": a file per width, the smallest; "multi": one file
            for all widths, of which an input chooses; "switchable": one graph that takes its weights as inputs (both
            "onnx" alone).
        weights: "signed": the fastest where the processor has VNNI; "portable": exact on every processor, in any
            program (`export.portable`).
        float_image: keep the first layer of a convolutional network in float instead of rounding the image to 8 bits.
        packed: weights narrower than 8 bits take their bits alone in static ONNX files; False: a byte each, for a
            program that would unpack them at every call.
        device: of a backend that compiles for one ("ethosu"); None: its default.

    Returns:
        a report per width.

    Raises:
        ExportError: an operation that cannot be exported, a folder that cannot be used, or an export that does not
            compute the same. Nothing is left of it.  ConfigError: no target has this form and backend, or a package of
            the backend is not installed.
    """
    folder = Path(folder)
    place = folder.resolve()
    target = _target(form, backend, weights, packed, device)
    check_place(folder)
    asked: list[Which] = list(bits) if bits is not None else [*model.pairs, *model.assignments]
    draft = Draft(model, images, asked, float_image=float_image, pack=packed, target=target)
    with replacing_folder(place) as part:
        manifest = _write(draft, part, target, weights)
        session = Session(part)
        reports = compare(draft, session)
        manifest["report"] = {name: asdict(report) for name, report in reports.items()}
        if text := target.readme(manifest, part):
            (part / README).write_text(text, encoding="utf-8")
        write_manifest(part, manifest)
        _refuse_other_results(draft, session, reports)
        check_place(folder)  # minutes may have passed
    return reports


def _write(draft: Draft, folder: Path, target: OnnxStatic, weights: str) -> dict[str, Any]:
    model, files = draft.model, target.files(draft)
    for name, file in files.items():
        network = target.network(draft, name)
        target.verify(draft, name, network)
        stored = as_portable(network, target.backend) if weights == "portable" and not target.exact else network
        target.write(stored, folder / file)
    constants = target.beside(draft, folder, network)
    manifest = {
        "form": target.form,
        "backend": target.backend,
        "weights": weights,
        "old_processors": old_processors(draft, target, weights),
        "files": files,
        "image_shape": list(draft.images.shape[1:]),
        "info": model.info.to_json(),
        "pairs": model.pairs,
        "layers": [layer.to_json() for layer in model.layers.values()],
        "assignments": {name: assignment.to_json() for name, assignment in draft.assignments.items()},
        "table": draft.plan.table.to_json(),
        "constants": constants,
        "float_layers": draft.plan.floating,
        **target.told(draft, folder),
    }
    write_manifest(folder, manifest)
    return manifest


def old_processors(draft: Draft, target: OnnxStatic, weights: str) -> str:
    """What whoever runs the files without `Session` needs on an x86 processor without VNNI, where 8-bit sums may
    saturate (export.portable)."""
    products = any(op.key == "QuantMatmul" for op in draft.ops)
    if weights == "portable" or target.exact:
        return "exact on every processor"
    if (target.backend, target.form) == ("onnx", "static") and not products:
        return "without VNNI exact with the session option session.x64quantprecision=1, which makes the others slower"
    return "without VNNI exact only in Session; for other programs there export with weights=portable"


def _target(form: str, backend: str, weights: str, packed: bool, device: str | None) -> OnnxStatic:
    if weights not in WEIGHTS:
        raise ExportError(f"found weights={weights!r}; expected one of {', '.join(WEIGHTS)}.")
    target = target_of(backend, form, device)
    if not packed and not target.packs:
        raise ConfigError(
            f"found packed=False with backend={backend!r} and form={form!r}, which store weights in one way alone; "
            f"expected it with form='static' of backend='onnx'. Leave it out."
        )
    require(backend, *target.writers, *target.packages)
    return target


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
