"""export=onnx, export=openvino: an artifact written for another runtime, on calibration images of `data`."""

from __future__ import annotations

import logging
from pathlib import Path

from ptmq_lightning.compose.schema import Config
from ptmq_lightning.data.module import calibration_images, draw_calibration
from ptmq_lightning.data.sources import open_data
from ptmq_lightning.models.zoo import Preprocessing
from ptmq_lightning.runtime import artifact
from ptmq_lightning.runtime.export import export
from ptmq_lightning.runtime.export_cli import lines

log = logging.getLogger(__name__)


def run_export(config: Config, folder: Path) -> float:
    """Load `artifact`, write it for `export.name` and log the check.

    Returns:
        the least agreement with the simulation over all widths, in percent.
    """
    assert config.artifact is not None
    model = artifact.load(config.artifact)
    data = config.data
    sources = open_data(
        data.name,
        preprocessing=Preprocessing.from_json(model.preprocessing()),
        seed=data.seed,
        calibration_images=config.export.images,
        root=data.root,
        train=data.train,
        val=data.val,
        class_map=data.class_map,
        val_images=data.val_images,
    )
    images = calibration_images(sources.train, draw_calibration(sources.train, config.export.images, config.seed))
    out = Path(config.export.out) if config.export.out else folder / "export"
    bits = config.export.bits or None
    reports = export(model, out, images, bits, form=config.export.form, backend=config.export.name)
    log.info("exported to %s", out)
    for line in lines(reports):
        log.info("%s", line)
    return min(report.agreement for report in reports.values())
