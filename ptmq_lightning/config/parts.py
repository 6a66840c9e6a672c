"""The configuration's groups as the frozen values and objects that the rooms take."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields, replace

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ptmq_lightning.config.schema import (
    BitsConfig,
    Config,
    LoggerConfig,
    LossConfig,
    MixerConfig,
    QuantConfig,
    ReconConfig,
    RoundingConfig,
    StepSizeConfig,
    TrainerConfig,
)
from ptmq_lightning.quant.insert import Override, Placement
from ptmq_lightning.quant.roundings import ROUNDINGS, RoundingKeys
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.reconstruct.losses import LossKeys
from ptmq_lightning.reconstruct.mixer import MIXERS, Mixer, MixerKeys
from ptmq_lightning.reconstruct.objective import Objective
from ptmq_lightning.reconstruct.recipe import Recipe, Schedule
from ptmq_lightning.report.trackers import TrackerSettings
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.registry import made
from ptmq_lightning.runtime.spec import BitGroups, BitWidth

CHATTY = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")  # loggers


def check(config: Config) -> None:
    """Make every value once, so that what a room refuses is refused before anything is loaded. Raises ConfigError."""
    placement(config.bits, config.quant)
    step_size(config.step_size)
    rounding(config.rounding)
    mixer(config.mixer)
    for attention in (False, True):
        objective(config.loss, config.mixer, attention)
    quieten()
    device_of(config.trainer)


def placement(config: BitsConfig, quant: QuantConfig) -> Placement:
    """Which widths the layers may take."""
    overrides = [Override(item.pattern, item.w, item.a) for item in config.overrides]
    return Placement(config.edge, config.softmax, overrides, quant.gelu)


def pairs(config: BitsConfig) -> tuple[BitWidth, ...]:
    """Every pair the model is prepared for: the groups', low to high, then the extra ones."""
    return (*BitGroups.of(config.groups).pairs, *(BitWidth.parse(pair) for pair in config.extra))


def step_size(config: StepSizeConfig) -> StepSize:
    return StepSize(config.name, config.anchor, config.free_widths, config.learn, config.p)


def recipes(config: Config, model: MultiBitModel) -> tuple[Recipe, ...]:
    """The passes over the network, none where nothing is learned; ``model`` tells whether there is attention.

    The second phase learns activation steps alone, on the committed weights, from float features and with errors to
    the power of 2.4, none weighted (as BRECQ's code).
    """
    recon, nearest = config.recon, not ROUNDINGS[config.rounding.name].learns
    if nearest and not recon.bias_correction:
        return ()
    attention = any(row.kind == "matmul" for row in model.layers.values())
    first = Recipe(
        groups=BitGroups.of(config.bits.groups),
        mixer=mixer(config.mixer),
        objective=objective(config.loss, config.mixer, attention and recon.unit == "block"),
        rounding=rounding(config.rounding),
        schedule=schedule(recon),
        drop=recon.drop,
        seed=config.seed,
        learn_step_sizes=config.step_size.learn,
        unit=recon.unit,
        quantize_inputs=recon.quantize == "all",
        learn_inputs=recon.activation == "joint" and not nearest,
        bias_correction=recon.bias_correction,
    )
    if nearest or recon.activation != "second_phase":
        return (first,)
    second = replace(
        first,
        mixer=mixer(replace(config.mixer, name="float")),
        objective=objective(replace(config.loss, weight="none"), config.mixer, attention, p=2.4),
        rounding=RoundingKeys("nearest"),
        schedule=replace(first.schedule, iters=activation_iters(recon)),
        quantize_inputs=True,
        learn_inputs=True,
    )
    return replace(first, bias_correction=False), second


def activation_iters(recon: ReconConfig) -> int:
    """Of the second phase."""
    return recon.activation_iters or max(recon.iters // 4, 1)


def mixer(config: MixerConfig) -> Mixer:
    made_of_it: Mixer = made(MIXERS, MixerKeys(config.name, config.p, config.weights))
    return made_of_it


def objective(config: LossConfig, mix: MixerConfig, blocks_with_attention: bool, *, p: float = 2.0) -> Objective:
    """gd_figure's mixture has the mixer's weights; blocks_with_attention: of such a network whole blocks are fitted."""
    keys = LossKeys(
        name=config.form,
        weight=config.weight,
        norm=config.norm,
        tokens=config.tokens,
        gammas=config.gammas,
        chain_k=config.chain_k,
        stop_gradient=config.stop_gradient,
    )
    return Objective(keys, mixture=mix.weights, attention=blocks_with_attention, p=p)


def rounding(config: RoundingConfig) -> RoundingKeys:
    return RoundingKeys(config.name, config.planes, config.init_width, config.rate)


def schedule(config: ReconConfig) -> Schedule:
    return Schedule(**{field.name: getattr(config, field.name) for field in fields(Schedule)})


def calibration_count(config: Config) -> int:
    """How many calibration images are drawn: data's number, at most recon's."""
    most = config.recon.calibration_images
    return config.data.calibration_images if most is None else min(config.data.calibration_images, most)


def trackers(config: LoggerConfig) -> TrackerSettings:
    return TrackerSettings(
        config.name, config.mode, config.project, config.entity, config.group, config.run_name, tuple(config.tags)
    )


def quieten() -> None:
    """Lightning says nothing about its defaults, which every block's Trainer would repeat."""
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)


def device_of(config: TrainerConfig) -> torch.device:
    """Where this process calibrates, keeps features, fits and evaluates: the trainer's device. Raises ConfigError for
    a trainer that cannot be."""
    if config.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError("trainer.accelerator=gpu, but torch finds no GPU here; set trainer=cpu")
    try:
        return trainer(config, loggers=(), callbacks=()).strategy.root_device
    except (ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(
            f"the trainer cannot be made: {error}; set trainer=cpu, gpu or ddp, or mend trainer.*"
        ) from error


def trainer(config: TrainerConfig, *, loggers: Sequence[Logger], callbacks: Sequence[L.Callback]) -> L.Trainer:
    """A fresh Trainer for one block: one pass over the loader, which holds exactly the block's steps."""
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        deterministic=config.deterministic,
        max_epochs=1,
        log_every_n_steps=0,  # the module logs by itself
        logger=list(loggers),
        callbacks=list(callbacks),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
