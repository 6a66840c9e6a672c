"""The whole project in one file: each arrow from a float network to one saved multi-bit model is a short function.

N calibration images, B batch, C channels, H W.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ptmq_lightning.allocate.search import greedy
from ptmq_lightning.allocate.sensitivity import Sensitivity, layer_sensitivity
from ptmq_lightning.artifact.graph import require_storable
from ptmq_lightning.compose import process, trained
from ptmq_lightning.compose.compiling import compiles
from ptmq_lightning.compose.digits import train_digits
from ptmq_lightning.compose.folder import RunFolder
from ptmq_lightning.compose.inputs import describe_inputs
from ptmq_lightning.compose.memory import release_freed_memory
from ptmq_lightning.compose.outcome import figure, record, table
from ptmq_lightning.compose.progress import Progress, now_and_then
from ptmq_lightning.compose.sanity import count_classes, tell_preprocessing, try_float_network
from ptmq_lightning.config import parts
from ptmq_lightning.config.schema import Config, FoldConfig, ModelConfig
from ptmq_lightning.data.module import calibration_images, draw_calibration, eval_loader
from ptmq_lightning.data.sources import Sources, open_data
from ptmq_lightning.evaluation.accuracy import measure_accuracy
from ptmq_lightning.export.foresee import unexportable
from ptmq_lightning.models import zoo
from ptmq_lightning.models.blocks import Block, cut, opaque_layers
from ptmq_lightning.models.faithful import require_same
from ptmq_lightning.models.fold import FoldReport, fold
from ptmq_lightning.models.graph import trace
from ptmq_lightning.models.reparametrize import reparametrize
from ptmq_lightning.models.unwrap import plain
from ptmq_lightning.models.zoo import Network
from ptmq_lightning.quant import kernels
from ptmq_lightning.quant.insert import insert
from ptmq_lightning.quant.steps import calibrate
from ptmq_lightning.reconstruction.features import predict_bytes
from ptmq_lightning.reconstruction.reconstruct import BlockResult, reconstruct_model
from ptmq_lightning.report.trackers import log_summary, open_trackers
from ptmq_lightning.runtime.errors import DataError
from ptmq_lightning.runtime.info import Evaluation, ModelInfo
from ptmq_lightning.runtime.model import MultiBitModel, device_of

log = logging.getLogger(__name__)

DIGITS_CACHE = Path("outputs/digits")
FIGURES = ("top1", "agreement", "logit_error")
FOLD_IMAGES = 32  # calibration images that the reparametrization looks at


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
            parts.trackers(config.logger),
            run=path,
            widths=[str(pair) for pair in parts.groups(config.bits).pairs],
            hyperparameters=asdict(config),
            resume_step=folder.finished_iters(),
        ) as loggers:
            rows = walk(config, folder, loggers)
        folder.close()
    return figure(config, rows)


def walk(config: Config, folder: RunFolder, loggers: Sequence[Logger]) -> list[dict[str, Any]]:
    """Every stage in order, a line of log each; the rows of results.json."""
    device = parts.device_of(config.trainer)
    seconds: dict[str, float] = {}
    with stage("build", seconds):
        network = build(config.model)
    with stage("data", seconds):
        sources, indices, images = load(config, network)
    folder.require_same_inputs(describe_inputs(network.module, images))
    tell_preprocessing(network)
    try_float_network(network, sources, config.model.expected_top1, config.data.eval_batch)
    with stage("fine-tune", seconds):
        tuned = trained.tune(network, images.to(device), sources, indices, config, loggers)
    with stage("fold and cut", seconds):
        blocks = prepare(tuned, images, config.fold, norms=not trained.as_a_whole(config))
    with stage("insert", seconds):
        model = quantize(blocks, config, network).to(device)
    images = images.to(device)
    with stage("calibrate", seconds):
        calibrate(model, images[: config.data.step_size_images], p=config.step_size.p, seed=config.seed)
    with stage("reconstruct", seconds):
        if trained.as_a_whole(config):
            model, fits = trained.train(model, images, sources, indices, config, loggers)
        else:
            fits = learn(model, images, config, loggers, folder)
    with stage("allocate", seconds):
        sensitivity = allocate_bits(model, images, config)
    with stage("evaluate", seconds):
        evaluation = measure(model, sources, config, network.module)
    seconds["reconstruct"] = seconds["fine-tune"] + sum(fit.seconds for fit in fits)
    with stage("save", seconds):
        record(folder.work, model, config, sources, indices, evaluation, sensitivity, seconds)
    rows = [asdict(row) for row in evaluation.rows]
    log_summary(loggers, {f"{row['config']}/{name}": row[name] for row in rows for name in FIGURES})
    return rows


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Time a stage and say so in one line."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
    log.info("%s: %.1f s", name, seconds[name])


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


def load(config: Config, network: Network) -> tuple[Sources, list[int], Tensor]:
    """The sources, which calibration images were drawn, and these as one tensor (N, C, H, W) on the CPU."""
    keys = ("root", "train", "val", "class_map", "val_images")
    data, count = config.data, config.data.calibration_images
    sources = open_data(
        data.name,
        preprocessing=network.preprocessing,
        seed=data.seed,
        calibration_images=count,
        **{key: getattr(data, key) for key in keys},
    )
    indices = draw_calibration(sources.train, count, config.seed, sources.val)
    images = calibration_images(sources.train, indices)
    classes = count_classes(network, images)
    if sources.num_classes > classes or (sources.num_classes < classes and not sources.mapped and network.trained):
        raise DataError(
            f"data={data.name} has {sources.num_classes} classes, but {network.name} tells {classes} apart; choose "
            "images of the network's own classes (data=imagenet data.root=DIR), number the folders of some of them "
            "with data.class_map=FILE, or set model.num_classes and a model.checkpoint that fits"
        )
    log.info("%d calibration and %d evaluation images of %s", len(images), len(sources.val), data.name)
    return sources, indices, images


def prepare(network: Network, images: Tensor, config: FoldConfig, *, norms: bool = True) -> list[Block]:
    """The float network without foldable norms, cut into blocks whose chain computes the same; images (N, C, H, W).

    norms: false keeps every norm, for a method that trains them.
    """
    module = plain(network.module)
    gm = trace(module, network.preprocessing.input_size)
    report = fold(gm, equalize=config.equalize) if norms else FoldReport()
    if config.reparam:
        report += reparametrize(gm, images[:FOLD_IMAGES])
    blocks = cut(gm, images[:2], name=network.name)
    require_same(module, blocks, images, name=network.name)
    require_storable(block.module for block in blocks)
    log.info("%d blocks, %d norms and scales folded", len(blocks), len(report.folded))
    for what, why in report.kept:
        log.info("not folded: %s: %s", what, why)
    for hidden in opaque_layers(gm, module):
        log.warning("not quantized: %s", hidden)
    for what in unexportable((block.module for block in blocks), images[:2]):
        log.warning("cannot be exported to ONNX: %s", what)
    return blocks


def quantize(blocks: Sequence[Block], config: Config, network: Network) -> MultiBitModel:
    """Quantizers at every width into the blocks; weights on the latent grid, rounded to nearest for now."""
    model = insert(blocks, parts.pairs(config.bits), config.placement, config.step_size)
    groups = parts.groups(config.bits)
    model.info = ModelInfo(network.name, network.source, preprocessing=network.preprocessing, groups=groups)
    return model


def learn(
    model: MultiBitModel,
    images: Tensor,
    config: Config,
    loggers: Sequence[Logger] = (),
    folder: RunFolder | None = None,
) -> list[BlockResult]:
    """Every pass over the network, from the first block that an earlier, killed run of ``folder`` did not finish;
    images (N, C, H, W)."""
    passes = parts.recipes(config, model)
    size = max((predict_bytes(model, images, recipe.mixer, recipe.groups) for recipe in passes), default=0)
    log.info("feature cache: %.0f MiB at its largest", size / 2**20)
    fast = compiles(config.trainer.compile, model, images, passes)
    results = folder.restore(model) if folder else []
    done, blocks, before = len(results), len(model.blocks), (0, 0)
    for number, recipe in enumerate(passes):
        first = min(max(done - number * blocks, 0), blocks)
        units = [sum(recipe.count(b.layers.values()) for b in model.chain[:end]) for end in (first, blocks)]
        progress = Progress(recipe.schedule.iters, first_block=before[0] + units[0])

        def keep(index: int, result: BlockResult, number: int = number) -> None:
            release_freed_memory()
            if folder:
                folder.keep(model, number * blocks + index, result)

        def new_trainer(progress: Progress = progress) -> L.Trainer:
            return parts.trainer(config.trainer, loggers=loggers, callbacks=[progress])

        if first < blocks:
            with kernels.compiled(fast):
                results += reconstruct_model(
                    model, images, recipe, new_trainer, from_block=first, after_block=keep, before=before
                )
        before = (before[0] + units[1], before[1] + units[1] * recipe.schedule.iters)
    return results


def allocate_bits(model: MultiBitModel, images: Tensor, config: Config) -> Sensitivity:
    """Named assignments of widths per layer at each average of weight bits; nothing where none is asked for."""
    if config.allocate.name == "none":
        return {}
    tell = now_and_then()
    sensitivity = layer_sensitivity(
        model,
        images[: config.allocate.sensitivity_images],
        parts.pairs(config.bits),
        progress=lambda done, layers: tell(f"sensitivity: layer {done} of {layers}"),
    )
    for average in config.allocate.averages:
        model.assignments[f"mixed_{float(average)}"] = greedy(model, sensitivity, average)
    return sensitivity


def measure(model: MultiBitModel, sources: Sources, config: Config, float_network: nn.Module) -> Evaluation:
    """Every pair and every named assignment on the evaluation images, beside the network as it came."""
    loader = eval_loader(sources.val, config.data.eval_batch, workers=config.data.workers)
    names = [*config.bits.evaluate, *model.assignments]
    tell = now_and_then()
    evaluation = measure_accuracy(
        model,
        loader,
        names,
        float_network=float_network.to(device_of(model)),
        progress=lambda images, name: tell(f"evaluated: {images} of {len(sources.val)} images at {name}"),
    )
    for line in table(evaluation):
        log.info("%s", line)
    return evaluation
