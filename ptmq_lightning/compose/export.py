"""export=onnx and the other targets: an artifact written for another runtime, on calibration images of `data`; without
artifact=DIR the model of the run itself."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import yaml
from lightning.pytorch.utilities import rank_zero_only

from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose.folder import CONFIG
from ptmq_lightning.config.schema import Config, DataConfig
from ptmq_lightning.data.module import calibration_images, draw_calibration
from ptmq_lightning.data.sources import open_data
from ptmq_lightning.device.export_cli import report_lines, widths
from ptmq_lightning.export.export import write_export
from ptmq_lightning.runtime.errors import ConfigError, ModelError
from ptmq_lightning.runtime.preprocessing import Preprocessing

log = logging.getLogger(__name__)


def run_export(config: Config, folder: Path) -> float:
    """Load `artifact`, write it for `export.name` and log the check. Without data=, the images are those of the run
    whose folder the artifact lies in.

    Returns:
        the least agreement with the simulation over all widths, in percent.

    Raises:
        ConfigError: `data` is another than the artifact's: ranges would be those of other images.
    """
    assert config.artifact is not None
    model, data = artifact.load(config.artifact), config.data
    own = model.info.data or data.name
    if own != data.name == "digits" and (kept := Path(config.artifact).parent / CONFIG).exists():
        data = DataConfig(**yaml.safe_load(kept.read_text(encoding="utf-8"))["data"])  # no data= was given
        log.info("data as in the run that left the artifact: %s", kept)
    if own != data.name:
        raise ConfigError(
            f"the artifact {config.artifact} was made with data={own}, but its export would see images of "
            f"data={data.name}; set data={own}, with data.root=DIR where it needs one"
        )
    sources = open_data(
        data.name,
        preprocessing=_known(model.info.preprocessing),
        seed=data.seed,
        calibration_images=config.export.images,
        root=data.root,
        train=data.train,
        val=data.val,
        class_map=data.class_map,
        val_images=data.val_images,
    )
    indices = draw_calibration(sources.train, config.export.images, config.seed, key="export.images")
    images = calibration_images(sources.train, indices)
    out = Path(config.export.out) if config.export.out else folder / "export"
    bits = widths(",".join(config.export.bits))
    asked = config.export
    reports = write_export(
        model, out, images, bits, form=asked.form, backend=asked.name, weights=asked.weights, device=asked.device,
        packed=asked.packed or asked.form != "static",
    )  # fmt: skip
    for line in report_lines(out, reports):
        log.info("%s", line)
    return min(report.agreement for report in reports.values())


@rank_zero_only
def export_own(config: Config, folder: Path) -> None:
    """Write the model that a run has left in its folder beside it, as model-onnx or model-NAME."""
    out = config.export.out or str(folder / f"model-{config.export.name}")
    run_export(replace(config, artifact=str(folder / "model"), export=replace(config.export, out=out)), folder)


def _known(preprocessing: Preprocessing | None) -> Preprocessing:
    if preprocessing is None:
        raise ModelError(
            "the artifact does not tell how pictures become its images; expected info.preprocessing. Set it before "
            "saving, or export with `ptmq export` on preprocessed images (.npy)."
        )
    return preprocessing
