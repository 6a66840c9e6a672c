"""What a run leaves behind: its record, its table, its page, its one figure."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ptmq_lightning.allocate.figures import write_sensitivity
from ptmq_lightning.allocate.sensitivity import Sensitivity
from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose.details import write_details
from ptmq_lightning.compose.memory import peak_memory
from ptmq_lightning.compose.stages import Stages
from ptmq_lightning.compose.trained import record_costs
from ptmq_lightning.config.schema import Config
from ptmq_lightning.data.module import calibration_images
from ptmq_lightning.data.sources import Sources
from ptmq_lightning.evaluation.cost import layer_macs
from ptmq_lightning.finetune import store
from ptmq_lightning.finetune.network import SharedModel
from ptmq_lightning.report.page import write_page
from ptmq_lightning.report.record import write_calibration, write_layers, write_results
from ptmq_lightning.runtime.info import Evaluation
from ptmq_lightning.runtime.model import MultiBitModel, device_of
from ptmq_lightning.runtime.spec import BitGroups

PACKAGES = ("ptmq-lightning", "torch", "torchvision", "timm", "lightning", "torchmetrics", "hydra-core")


@rank_zero_only
def record(
    path: Path,
    model: MultiBitModel,
    config: Config,
    sources: Sources,
    indices: list[int],
    evaluation: Evaluation,
    sensitivity: Sensitivity,
    stages: Stages,
) -> dict[str, Any]:
    """The model, the layer table, the calibration draw, a baseline's costs; last the page and results.json, whose
    values are returned: with it the run is complete."""
    model.info = replace(model.info, data=sources.name, accuracy=evaluation, classes=sources.classes)
    save_model(model, path / "model")
    columns: dict[str, dict[str, Any]] = {"macs": dict(layer_macs(model, example_of(sources, model)))}
    for name, assignment in model.assignments.items():
        columns[name] = {layer: str(pair) for layer, pair in assignment.items()}
    for pair in dict.fromkeys(pair for harm in sensitivity.values() for pair in harm):
        columns[f"sensitivity_{pair}"] = {layer: harm[pair] for layer, harm in sensitivity.items()}
    write_layers(path, model.layers, block_names=model.block_names, columns=columns)
    if sensitivity:
        write_sensitivity(path, sensitivity)
    write_calibration(path, indices, sources.describe())
    peak = peak_memory()
    fitted = sum(stages.seconds[name] for name in ("fine-tune", "reconstruct", "tune"))
    record_costs(path, model, sources, indices, config, fitted, peak)
    stages.end("save")
    results = {
        "model": config.model.name,
        "data": sources.name,
        "method": config.method.name,
        "seed": config.seed,
        "versions": versions(),
        "calibration_images": len(indices),
        "evaluation_images": evaluation.images,
        "fp": evaluation.fp,
        "seconds": stages.seconds,
        "peak_memory_bytes": peak,
        "rows": [asdict(row) for row in evaluation.rows],
    }
    write_details(path, model, config, sources)
    write_page(path, results)
    stages.end("report")
    write_results(path, results)
    return results


def save_model(model: MultiBitModel, folder: Path) -> None:
    """The artifact; of a model trained as a whole the tensors of all its widths, which `finetune.store` reads again."""
    if isinstance(model, SharedModel):
        store.save(model, folder)
    else:
        artifact.save(model, folder)


def example_of(sources: Sources, model: MultiBitModel) -> Tensor:
    """One evaluation image (1, C, H, W) on the model's device."""
    return calibration_images(sources.val, [0]).to(device_of(model))


def figure(config: Config, rows: Sequence[Mapping[str, Any]]) -> float:
    """top-1 in percent at the narrowest pair that was learned and evaluated."""
    learned = [str(pair) for pair in BitGroups.of(config.bits.groups).pairs]
    return float(next((row["top1"] for name in learned for row in rows if row["config"] == name), rows[0]["top1"]))


def versions() -> dict[str, str]:
    """Of Python and of what the figures depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def table(evaluation: Evaluation) -> list[str]:
    """The figures as lines of text: top-1, top-5, agreement in percent, relative logit error."""
    top5 = evaluation.fp["top5"]
    lines = [
        f"{'':>10}  {'top1':>6}  {'top5':>6}  {'agree':>6}  {'error':>7}",
        f"{'float':>10}  {evaluation.fp['top1']:6.2f}  {_cell(top5)}",
    ]
    for row in evaluation.rows:
        figures = f"{row.top1:6.2f}  {_cell(row.top5)}  {row.agreement:6.2f}  {row.logit_error:7.4f}"
        lines.append(f"{row.config:>10}  {figures}")
    return lines


def _cell(value: Any) -> str:
    return "     -" if value is None else f"{value:6.2f}"
