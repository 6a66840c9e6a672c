"""The whole project in one file: each arrow from a float network to one saved multi-bit model is a short function.

N calibration images, B batch, C channels, H W.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ptmq_lightning.allocate.sensitivity import Sensitivity
from ptmq_lightning.artifact.graph import require_storable
from ptmq_lightning.artifact.hub import card
from ptmq_lightning.compose import process, trained
from ptmq_lightning.compose.class_names import class_names, require_classes
from ptmq_lightning.compose.deploy import add_roundings
from ptmq_lightning.compose.digits import train_digits
from ptmq_lightning.compose.export import export_own
from ptmq_lightning.compose.folder import RunFolder
from ptmq_lightning.compose.inputs import describe_inputs
from ptmq_lightning.compose.learning import learn
from ptmq_lightning.compose.outcome import figure, record, table
from ptmq_lightning.compose.progress import Left
from ptmq_lightning.compose.sanity import count_classes, tell_preprocessing, try_float_network
from ptmq_lightning.compose.stages import Stages
from ptmq_lightning.config import parts
from ptmq_lightning.config.schema import Config, FoldConfig, ModelConfig
from ptmq_lightning.data.module import calibration_images, draw_calibration, eval_loader
from ptmq_lightning.data.sources import Sources, open_data
from ptmq_lightning.device.allocation import Allocation
from ptmq_lightning.evaluation.accuracy import measure_accuracy
from ptmq_lightning.export.foresee import require_exportable, unexportable
from ptmq_lightning.models import zoo
from ptmq_lightning.models.blocks import Block, cut, opaque_layers
from ptmq_lightning.models.equalize import equalize
from ptmq_lightning.models.faithful import require_same
from ptmq_lightning.models.fold import FoldReport, fold
from ptmq_lightning.models.graph import trace
from ptmq_lightning.models.reparametrize import reparametrize
from ptmq_lightning.models.rotate import rotate
from ptmq_lightning.models.unwrap import plain
from ptmq_lightning.models.zoo import Network
from ptmq_lightning.quant.insert import insert
from ptmq_lightning.quant.steps import calibrate
from ptmq_lightning.report.end import End
from ptmq_lightning.report.trackers import log_end, open_trackers
from ptmq_lightning.runtime.info import Evaluation, ModelInfo
from ptmq_lightning.runtime.model import MultiBitModel, device_of

log = logging.getLogger(__name__)

DIGITS_CACHE = Path("outputs/digits")
FOLD_IMAGES = 32  # calibration images that equalization and reparametrization look at


def run(config: Config, path: Path) -> float:
    """One run; its record is left in ``path``.

    Returns:
        top-1 in percent at the narrowest learned pair that is evaluated: what a sweep over settings may maximize.
    """
    parts.check(config)
    with RunFolder(path, config) as folder:
        if (results := folder.finished()) is not None:
            log.info("resume: the run in %s is complete", path)
            return figure(config, results["rows"])
        process.prepare(config.trainer, config.seed)
        folder.open()
        with open_trackers(
            folder.work,
            config.logger,
            run=path,
            widths=[str(pair) for pair in parts.groups(config.bits).pairs],
            hyperparameters=asdict(config),
            resume_step=folder.finished_iters(),
        ) as loggers:
            rows = walk(config, folder, loggers)
        folder.close()
        if config.export.name != "none":
            export_own(config, path)  # behind the end of the run: whatever happens to it, the model is there
    return figure(config, rows)


def walk(config: Config, folder: RunFolder, loggers: Sequence[Logger]) -> list[dict[str, Any]]:
    """Every stage in order, a line of log each; the rows of results.json."""
    device = parts.device_of(config.trainer)
    stages = Stages()
    stage = stages.stage
    with stage("data"):
        sources, indices = find(config)
    with stage("build"):
        network = build(config.model)
    with stage("data"):
        sources, images = load(config, network, sources, indices)
        folder.require_same_inputs(describe_inputs(network.module, images))
    with stage("check"):
        tell_preprocessing(network)
        try_float_network(network, sources, config.model.expected_top1, config.data.eval_batch)
    with stage("fine-tune"):
        tuned = trained.tune(network, images.to(device), sources, indices, config, loggers)
    with stage("fold and cut"):
        whole = trained.trains_whole_network(config)
        blocks = prepare(tuned, images, config.fold, norms=not whole, exported=config.export.name)
    with stage("insert"):
        model = quantize(blocks, config, network).to(device)
    images = images.to(device)
    with stage("calibrate"):
        seen = images[: config.data.step_size_images]
        calibrate(model, seen, p=config.step_size.p, seed=config.seed, progress=Left("calibrate"))
    before = folder.finished_seconds()
    if whole:
        with stage("reconstruct"):
            model, _ = trained.train(model, images, sources, indices, config, loggers)
        stages.end("tune")
    else:
        learn(model, images, config, loggers, folder, stage)
    stages.seconds["reconstruct"] += before  # of a run that was stopped
    with stage("allocate"):
        sensitivity = allocate_bits(model, images, config)
    with stage("evaluate"):
        evaluation = measure(model, sources, config, network.module)
    results = record(folder.work, model, config, sources, indices, evaluation, sensitivity, stages)
    if results is not None:  # of the first process
        log_end(loggers, End(folder.work, results, folder.finished_iters(), card))
    return [asdict(row) for row in evaluation.rows]


def build(config: ModelConfig) -> Network:
    """The float network. The digits' own is trained here where no checkpoint is given."""
    checkpoint = config.checkpoint
    if config.name == "digits_resnet" and checkpoint is None and config.pretrained:
        checkpoint = str(train_digits(DIGITS_CACHE))
    network = zoo.build(
        config.name,
        checkpoint=Path(checkpoint) if checkpoint else None,
        pretrained=config.pretrained,
        num_classes=config.num_classes,
        preprocessing=config.preprocessing,
        drop_extra=config.drop_extra,
        **config.kwargs,
    )
    log.info("%s, %s", network.name, network.source)
    return network


def find(config: Config) -> tuple[Sources, list[int]]:
    """The sources, and which calibration images are drawn: what is known of a run before a network is there."""
    keys = ("root", "train", "val", "class_map", "val_images")
    data, count = config.data, config.data.calibration_images
    given = {key: getattr(data, key) for key in keys}
    sources = open_data(data.name, seed=data.seed, calibration_images=count, **given)
    require_classes(sources, config.model, zoo.classes_of(config.model.name, config.model.num_classes))
    return sources, draw_calibration(sources.train, count, config.seed, sources.val)


def load(config: Config, network: Network, sources: Sources, indices: list[int]) -> tuple[Sources, Tensor]:
    """The sources as the network wants them, with the classes' names as the run has them, and the calibration images
    (N, C, H, W) on the CPU."""
    sources = sources.prepared_for(network.preprocessing)
    images = calibration_images(sources.train, indices)
    classes = count_classes(network, images)
    require_classes(sources, config.model, classes)
    names = class_names(config.model.classes, network, sources, classes)
    log.info("%d calibration and %d evaluation images of %s", len(images), len(sources.val), config.data.name)
    return replace(sources, classes=names), images


def prepare(
    network: Network, images: Tensor, config: FoldConfig, *, norms: bool = True, exported: str = "none"
) -> list[Block]:
    """The float network without foldable norms, cut into blocks whose chain computes the same; images (N, C, H, W).

    norms: false keeps every norm, for a method that trains them. exported: a backend; what it does not take is refused.
    """
    module = plain(network.module)
    gm = trace(module, network.preprocessing.input_size)
    report = fold(gm) if norms else FoldReport()
    if norms and config.equalize:
        _tell("equalized with the layers that read them", equalize(gm, images[:FOLD_IMAGES]))
    if config.reparam:
        _tell("norms reparametrized", reparametrize(gm, images[:FOLD_IMAGES]))
    if config.rotate:
        _tell("operands of attention rotated", rotate(gm))
    blocks = cut(gm, images[:2], name=network.name)
    require_same(module, blocks, images, name=network.name)
    modules = [block.module for block in blocks]
    require_storable(modules)
    log.info("%d blocks, %d norms and scales folded", len(blocks), len(report.folded))
    for what, why in report.kept:
        log.info("not folded: %s: %s", what, why)
    for hidden in opaque_layers(gm, module):
        log.warning("not quantized: %s", hidden)
    if exported != "none":
        require_exportable(modules, images[:2], exported)
    else:
        for what in unexportable(modules, images[:2]):
            log.warning("cannot be exported to ONNX: %s", what)
    return blocks


def _tell(what: str, report: FoldReport) -> None:
    """How often a change that is worth trying everywhere was made; where it was not and why, to those who ask."""
    if report.folded:
        log.info("%s: %d", what, len(report.folded))
    log.debug("not %s: %s", what, "; ".join(f"{where}: {why}" for where, why in report.kept))


def quantize(blocks: Sequence[Block], config: Config, network: Network) -> MultiBitModel:
    """Quantizers at every width into the blocks; weights on the latent grid, rounded to nearest for now."""
    model = insert(
        blocks, parts.pairs(config.bits), config.placement, config.step_size, progress=Left("insert", "layer")
    )
    if config.placement.deploy != "none":
        add_roundings(model, network.preprocessing.input_size)
    groups = parts.groups(config.bits)
    model.info = ModelInfo(network.name, network.source, preprocessing=network.preprocessing, groups=groups)
    return model


def allocate_bits(model: MultiBitModel, images: Tensor, config: Config) -> Sensitivity:
    """Named assignments of widths per layer for every budget; nothing where none is asked for."""
    if config.allocate.name == "none":
        return {}
    allocation = Allocation(model, images, config.allocate, seed=config.seed, progress=Left("sensitivity", "layer"))
    model.assignments.update(allocation.assignments())
    return allocation.sensitivity


def measure(model: MultiBitModel, sources: Sources, config: Config, float_network: nn.Module) -> Evaluation:
    """Every pair and every named assignment on the evaluation images, beside the network as it came."""
    loader = eval_loader(sources.val, config.data.eval_batch, workers=config.data.workers)
    names = [*config.bits.evaluate, *model.assignments]
    left, seen = Left("evaluate", "image and width"), dict.fromkeys(map(str, names), 0)

    def progress(images: int, name: str) -> None:
        seen[name] = images
        left(sum(seen.values()), len(sources.val) * len(names))

    evaluation = measure_accuracy(
        model,
        loader,
        names,
        float_network=float_network.to(device_of(model)),
        progress=progress,
    )
    for line in table(evaluation):
        log.info("%s", line)
    return evaluation
