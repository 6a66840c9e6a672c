"""What is wrong with a configuration, in one message: values out of range, values that do not fit each other, keys
that do not exist, and keys that nothing reads.

``typed`` gives frozen objects back: outside this room, compose/cli.py alone sees an OmegaConf object.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from ptmq_lightning.allocate.keys import AllocateKeys
from ptmq_lightning.config.build import built
from ptmq_lightning.config.declared import every_value, keys_of
from ptmq_lightning.config.names import nearest, unknown
from ptmq_lightning.config.schema import BitsConfig, Config, ModelConfig
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.models.own import is_own
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.keys import choices_of, range_of
from ptmq_lightning.runtime.spec import BitGroups, BitWidth

PAIR_FORM = "write pairs by name: bits.groups=[[w3a3,w4a4],[w8a8]] bits.extra=[w2a4]"


def typed(config: DictConfig) -> Config:
    """The composed configuration as frozen objects, checked; bits.evaluate names what is evaluated.

    Raises:
        ConfigError: a value is missing, not allowed, or does not fit another one.
    """
    _forbid_unknown(config, Config)
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationResolutionError as error:
        raise ConfigError(_unresolved(str(error))) from error
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or "a key"
        raise ConfigError(f"{key} has no value; set it: {key}=...") from error
    _check_values(plain)
    made: Config = built(Config, plain)
    made = replace(made, bits=_evaluated(made.bits))
    check(made)
    return made


def _unresolved(message: str) -> str:
    if "PTMQ_DATA" in message:
        return (
            "the environment variable PTMQ_DATA is not set; this experiment reads its images and weights below the "
            "folder it names (cifar10/, imagenet/): PTMQ_DATA=DIR python train.py experiment=..."
        )
    return message


def check(config: Config) -> None:
    """What types cannot express, one message per fault. Raises ConfigError."""
    known = _check_bits(config.bits)
    if config.allocate.name != "none":
        _check_allocate(config.allocate, known)
    taken = {"num_classes"} if is_own(config.model.name) else keys_of(ModelConfig).keys()  # its class names the others
    for key in taken & config.model.kwargs.keys():
        value = config.model.kwargs[key]
        raise ConfigError(f"model.kwargs.{key} is a key of its own; set model.{key}={value}")
    _check_finetune(config)
    _check_method(config)
    if config.export.name != "none":
        target_of(config.export.name, config.export.form, config.export.device)
        if config.finetune.name != "none":
            raise ConfigError(
                f"method={config.method.name} leaves tensors for comparison, no artifact that "
                f"export={config.export.name} could write; set another method, or export=none"
            )


def _check_values(plain: Any) -> None:
    """Each value by itself, against its declaration."""
    for key, field, value in every_value(Config, plain):
        if (allowed := choices_of(field)) and value not in allowed:
            raise ConfigError(f"{key}={value} is not known{nearest(value, allowed)}; expected {', '.join(allowed)}")
        least, most = range_of(field)
        if isinstance(value, int | float) and not least <= value <= most:
            limit = f"{least} {'or more' if math.isinf(most) else f'to {most}'}"
            raise ConfigError(f"{key}={value} is out of range; expected {limit}")


def _evaluated(bits: BitsConfig) -> BitsConfig:
    """With every pair to evaluate, narrow to wide, where none is named."""
    if bits.evaluate:
        return bits
    return replace(bits, evaluate=tuple(str(pair) for pair in sorted(dict.fromkeys(_pairs(bits)))))


def _pairs(bits: BitsConfig) -> list[BitWidth]:
    """Of all groups and of extra. Raises ConfigError for what is no pair's name."""
    groups = [pair for group in bits.groups for pair in group]
    for key, names in (("groups", groups), ("extra", bits.extra)):
        if wrong := [name for name in names if not isinstance(name, str) or not name.startswith("w")]:
            raise ConfigError(
                f"bits.{key} holds {wrong[0]}, which is no pair of weight and activation bits; {PAIR_FORM}"
            )
    return [BitWidth.parse(name) for name in (*groups, *bits.extra)]


def _check_bits(bits: BitsConfig) -> list[BitWidth]:
    """The pairs against each other; all of them."""
    known = _pairs(bits)
    pairs, extra = BitGroups.of(bits.groups).pairs, [BitWidth.parse(pair) for pair in bits.extra]
    if doubled := sorted({str(pair) for pair in extra if known.count(pair) > 1}):
        raise ConfigError(f"{', '.join(doubled)} of bits.extra stands more than once in bits; expected it once")
    names = [str(pair) for pair in (*pairs, *extra)]
    if foreign := [name for name in bits.evaluate if name not in names]:
        raise ConfigError(
            f"bits.evaluate names {', '.join(foreign)}, which is in no group{nearest(foreign[0], names)}; "
            f"expected some of {', '.join(names)}: add the pair to bits.groups or bits.extra"
        )
    return known


def _check_allocate(allocate: AllocateKeys, known: list[BitWidth]) -> None:
    """The averages against the pairs, and prices with their limits."""
    averages, widths = allocate.averages, [pair.w for pair in known]
    if low := [average for average in averages if average < min(widths)]:
        raise ConfigError(
            f"allocate.averages asks for {low[0]:g} weight bits on average, but the narrowest pair has {min(widths)}; "
            "ask for more, or add a narrower pair to bits.groups or bits.extra"
        )
    if high := [average for average in averages if average > max(widths)]:
        raise ConfigError(
            f"allocate.averages asks for {high[0]:g} weight bits on average, but the widest pair has {max(widths)}; "
            "ask for less, or add a wider pair to bits.groups or bits.extra"
        )
    for key in ("averages", "size_mb", "bit_ops", "price_limits"):
        values = getattr(allocate, key)
        if len(set(values)) < len(values):
            raise ConfigError(f"allocate.{key}={list(values)} holds a value twice; expected it once")
    if allocate.prices is None and allocate.price is not None:
        raise ConfigError(f"allocate.price={allocate.price} has no file; expected allocate.prices=FILE beside it")
    if (allocate.prices is None) != (not allocate.price_limits):
        raise ConfigError(
            f"allocate.prices={allocate.prices} and allocate.price_limits={list(allocate.price_limits)} belong "
            "together; set both: the file, and what its prices may add up to"
        )


def _check_finetune(config: Config) -> None:
    """A method that trains with labels and its training come together, in one process."""
    finetune, method = config.finetune.name, config.method.name
    trains = choices_of(keys_of(type(config.finetune))["name"][0])
    if finetune != method and (finetune != "none" or method in trains):
        wanted = finetune if finetune != "none" else method
        raise ConfigError(
            f"finetune={finetune} is not what method={method} trains with; set method={wanted}, which brings its "
            "rounding, its step sizes and finetune with it"
        )
    if finetune != "none" and (config.trainer.name == "ddp" or str(config.trainer.devices) != "1"):
        raise ConfigError(
            f"method={method} trains in one process, but trainer={config.trainer.name} with "
            f"trainer.devices={config.trainer.devices} may start several; set trainer=gpu or trainer=cpu, and 1 device"
        )


def _check_method(config: Config) -> None:
    """What a method learns against what there is to learn."""
    method, groups = config.method, config.bits.groups
    if (weights := config.mixer.weights) and len(weights) != len(groups):
        raise ConfigError(
            f"mixer.weights={list(weights)} holds {len(weights)} numbers, but bits.groups has {len(groups)} groups; "
            "expected a number per group, low to high"
        )
    if method.quantize == "weights" and method.activation == "joint":
        raise ConfigError(
            "method.quantize=weights leaves activations in float, so that method.activation=joint has nothing to "
            "learn; set method.activation=fixed or second_phase, or method.quantize=all"
        )
    pairs = BitGroups.of(groups).pairs
    if method.single_pair and len(pairs) > 1:
        raise ConfigError(
            f"method={method.name} learns one pair of widths at a time, but bits.groups holds {len(pairs)}; set "
            f"bits={pairs[0]}, or any other pair"
        )


def _forbid_unknown(config: DictConfig, node: Any, prefix: str = "") -> None:
    """Keys that +KEY=VALUE added where nothing reads them."""
    for key in map(str, config):
        if key not in (known := keys_of(node)):
            raise ConfigError(unknown(f"{prefix}{key}"))
        if dataclasses.is_dataclass(kind := known[key][1]):
            _forbid_unknown(config[key], kind, f"{prefix}{key}.")
