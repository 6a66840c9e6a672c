"""The configuration's groups as the frozen values and objects that the rooms take."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from ptmq_lightning.config.schema import BitsConfig, Config, TrainerConfig
from ptmq_lightning.quant.roundings import ROUNDINGS, RoundingKeys
from ptmq_lightning.reconstruction.mixer import MIXERS, Mixer, MixerKeys
from ptmq_lightning.reconstruction.objective import Objective
from ptmq_lightning.reconstruction.recipe import Recipe, Schedule
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.layout import trains_channels_last
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.registry import made
from ptmq_lightning.runtime.spec import BitGroups, BitWidth

log = logging.getLogger(__name__)

CHATTY = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")  # loggers


def check(config: Config) -> None:
    """Make every value once, so that what a room refuses is refused before anything is loaded. Raises ConfigError."""
    mixer(config.mixer)
    for attention in (False, True):
        objective(config, attention)
    quieten()
    device_of(config.trainer)


def pairs(config: BitsConfig) -> tuple[BitWidth, ...]:
    """Every pair the model is prepared for: the groups', low to high, then the extra ones."""
    return (*groups(config).pairs, *(BitWidth.parse(pair) for pair in config.extra))


def groups(config: BitsConfig) -> BitGroups:
    """Whose pairs are drawn."""
    return BitGroups.of(config.groups)


def recipes(config: Config, model: MultiBitModel) -> tuple[Recipe, ...]:
    """The passes over the network, none where nothing is learned; ``model`` tells whether there is attention.

    The second phase learns activation step sizes alone, on the committed weights, from float features and with errors
    to the power of 2.4, none weighted (as BRECQ's code).
    """
    method, nearest = config.method, not ROUNDINGS[config.rounding.name].learns
    if nearest and method.bias_correction == "none":
        return ()
    attention = any(row.kind == "matmul" for row in model.layers.values())
    first = Recipe(
        groups=groups(config.bits),
        mixer=mixer(config.mixer),
        objective=objective(config, attention and method.unit == "block"),
        rounding=config.rounding,
        schedule=config.recon,
        drop=method.drop,
        seed=config.seed,
        learn_step_sizes=config.step_size.learn,
        unit=method.unit,
        quantize_inputs=method.quantize == "all",
        learn_inputs=method.activation == "joint" and not nearest,
        bias_correction=method.bias_correction,
    )
    if config.loss.norm == "auto":
        log.info("loss.norm=auto: %s", "token" if first.objective.normed else "none")
    if nearest or method.activation != "second_phase":
        return (first,)
    unweighted = replace(config, loss=replace(config.loss, weight="none"))
    second = replace(
        first,
        mixer=mixer(replace(config.mixer, name="float")),
        objective=objective(unweighted, attention, p=2.4),
        rounding=RoundingKeys("nearest"),
        schedule=replace(config.recon, iters=activation_iters(config.recon)),
        quantize_inputs=True,
        learn_inputs=True,
    )
    if method.bias_correction == "after":  # once, behind the last pass
        first = replace(first, bias_correction="none")
    return first, second


def activation_iters(recon: Schedule) -> int:
    """Of the second phase."""
    return recon.activation_iters or max(recon.iters // 4, 1)


def mixer(keys: MixerKeys) -> Mixer:
    chosen: Mixer = made(MIXERS, keys)
    return chosen


def objective(config: Config, attention: bool, *, p: float = 2.0) -> Objective:
    """gd_figure's mixture has the mixer's weights.

    Args:
        attention: whether whole blocks of a network with attention are fitted.
        p: of the error |d|^p.
    """
    return Objective(config.loss, mixture=config.mixer.weights, attention=attention, p=p)


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


def channels_last(config: TrainerConfig, network: nn.Module, device: torch.device) -> bool:
    """Whether a fit lays features out with channels last: a CPU's convolutions copy them else, and nothing that an
    artifact can hold asks where features lie in memory. Never where that would break the gradients of a CPU."""
    if device.type == "cpu" and not trains_channels_last(network):
        return False
    return config.channels_last == "always" or (config.channels_last == "auto" and device.type == "cpu")


def local_processes(config: TrainerConfig) -> int:
    """On this machine; with devices=auto as many as there are GPUs."""
    devices = str(config.devices)
    return int(devices) if devices.isdigit() else max(torch.cuda.device_count(), 1)


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
