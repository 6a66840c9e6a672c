"""What is wrong with a configuration, in one message: values out of range, values that do not fit each other, and keys
that do not exist, with the nearest ones that do.

``typed`` gives plain dataclasses back: outside this room, compose/cli.py alone sees an OmegaConf object.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue

from ptmq_lightning.config.schema import BitsConfig, Config, LayerOverride, MixerConfig, ModelConfig
from ptmq_lightning.finetune.baselines import BASELINES
from ptmq_lightning.reconstruct.importance import TOKENS, WEIGHTS
from ptmq_lightning.reconstruct.losses import LOSSES
from ptmq_lightning.reconstruct.units import UNITS
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.registry import Registry
from ptmq_lightning.runtime.spec import MAX_BITS, MIN_BITS, BitGroups, BitWidth

CHOICES = {
    "bits.edge": ("qdrop", "brecq", "8bit", "none"),
    "loss.norm": ("none", "token", "auto"),
    "quant.gelu": ("uniform", "table"),
    "recon.quantize": ("all", "weights"),
    "recon.activation": ("joint", "fixed", "second_phase"),
    "trainer.accelerator": ("cpu", "gpu", "cuda", "auto"),
    "logger.mode": ("online", "offline", "disabled"),
    "export.form": ("static", "switchable"),
    "export.weights": ("signed", "portable"),
}
VARIANTS: dict[str, Registry[Any]] = {  # their choices grow with what joins from outside
    "loss.form": LOSSES,
    "loss.weight": WEIGHTS,
    "loss.tokens": TOKENS,
    "recon.unit": UNITS,
}
COUNTS = (
    *("recon.iters", "recon.activation_iters", "recon.batch", "recon.log_every", "recon.calibration_images"),
    *(
        "data.calibration_images",
        "data.step_size_images",
        "data.eval_batch",
        "bits.sensitivity_images",
        "trainer.threads",
    ),
    *("finetune.epochs", "finetune.batch", "finetune.log_every", "finetune.statistics_images"),
)
RANGES: dict[str, tuple[float, float]] = {  # least and largest value
    **dict.fromkeys(COUNTS, (1, math.inf)),
    **dict.fromkeys(("bits.softmax", "step_size.anchor", "rounding.init_width"), (MIN_BITS, MAX_BITS)),
    **dict.fromkeys(("mixer.p", "loss.chain_k", "recon.warmup", "recon.drop"), (0, 1)),
    **dict.fromkeys(("recon.lr_rounding", "recon.lr_activation", "recon.lr_weight_step_size"), (0, math.inf)),
    **dict.fromkeys(("recon.lambda_rounding", "finetune.lr", "finetune.lr_step_size"), (0, math.inf)),
    "export.images": (2, math.inf),
    "data.workers": (0, math.inf),
}


def typed(config: DictConfig) -> Config:
    """The composed configuration as plain dataclasses, checked.

    Raises:
        ConfigError: a value is missing, not allowed, or does not fit another one.
    """
    _forbid_unknown(config, Config)
    try:
        plain = OmegaConf.to_object(config)
    except InterpolationResolutionError as error:
        raise ConfigError(_unresolved(str(error))) from error
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or "a key"
        raise ConfigError(f"{key} has no value; set it: {key}=...") from error
    assert isinstance(plain, Config)
    check(plain)
    return plain


def _unresolved(message: str) -> str:
    if "PTMQ_DATA" in message:
        return (
            "the environment variable PTMQ_DATA is not set; this experiment reads its images and weights below the "
            "folder it names (cifar10/, imagenet/): PTMQ_DATA=DIR python train.py experiment=..."
        )
    return message


def check(config: Config) -> None:
    """What types cannot express, one message per fault. Raises ConfigError."""
    _check_values(config)
    _check_bits(config.bits)
    for key in _fields(ModelConfig).keys() & config.model.kwargs.keys():
        value = config.model.kwargs[key]
        raise ConfigError(f"model.kwargs.{key} is a key of its own; set model.{key}={value}")
    if config.finetune.name != "none" and (config.trainer.name == "ddp" or str(config.trainer.devices) != "1"):
        raise ConfigError(
            f"method={config.finetune.name} trains in one process, but trainer={config.trainer.name} with "
            f"trainer.devices={config.trainer.devices} may start several; set trainer=gpu or trainer=cpu, and 1 device"
        )
    if (given := config.mixer.weights) != MixerConfig().weights and len(given) != len(config.bits.groups):
        raise ConfigError(
            f"mixer.weights={given} holds {len(given)} numbers, but bits.groups has {len(config.bits.groups)} groups; "
            "expected a number per group, low to high"
        )
    if config.recon.quantize == "weights" and config.recon.activation == "joint":
        raise ConfigError(
            "recon.quantize=weights leaves activations in float, so that recon.activation=joint has nothing to learn; "
            "set recon.activation=fixed or second_phase, or recon.quantize=all"
        )
    pairs = BitGroups.of(config.bits.groups).pairs
    if config.method.single_pair and len(pairs) > 1:
        raise ConfigError(
            f"method={config.method.name} learns one pair of widths at a time, but bits.groups holds {len(pairs)}; set "
            f"bits={pairs[0]}, or any pair by bits=pair bits.w={pairs[0].w} bits.a={pairs[0].a}"
        )
    if config.export.name != "none" and config.artifact is None:
        raise ConfigError(f"export={config.export.name} wants an artifact; set artifact=DIR, a run's model/ folder")


def _check_values(config: Config) -> None:
    """Each value by itself."""
    choices = CHOICES | {key: registry.names() for key, registry in VARIANTS.items()}
    choices["finetune.name"] = ("none", *BASELINES.names())
    for key, allowed in choices.items():
        if (value := _value(config, key)) not in allowed:
            raise ConfigError(f"{key}={value} is not known{nearest(value, allowed)}; expected {', '.join(allowed)}")
    for key, (least, most) in RANGES.items():
        if (value := _value(config, key)) is not None and not least <= value <= most:
            _refuse_range(f"{key}={value}", least, most)
    for number, override in enumerate(config.bits.overrides):
        for side in ("w", "a"):
            if (value := getattr(override, side)) is not None and not MIN_BITS <= value <= MAX_BITS:
                _refuse_range(f"bits.overrides[{number}].{side}={value}", MIN_BITS, MAX_BITS)


def _value(config: Config, key: str) -> Any:
    group, name = key.split(".")
    return getattr(getattr(config, group), name)


def _refuse_range(what: str, least: float, most: float) -> None:
    raise ConfigError(f"{what} is out of range; expected {least} {'or more' if math.isinf(most) else f'to {most}'}")


def _check_bits(bits: BitsConfig) -> None:
    """The pairs against each other."""
    pairs, extra = BitGroups.of(bits.groups).pairs, [BitWidth.parse(pair) for pair in bits.extra]
    known = [*pairs, *extra]
    if doubled := sorted({str(pair) for pair in extra if known.count(pair) > 1}):
        raise ConfigError(f"{', '.join(doubled)} of bits.extra stands more than once in bits; expected it once")
    names = [str(pair) for pair in known]
    if foreign := [name for name in bits.evaluate if name not in names]:
        raise ConfigError(
            f"bits.evaluate names {', '.join(foreign)}, which is in no group{nearest(foreign[0], names)}; "
            f"expected some of {', '.join(names)}: add the pair to bits.groups or bits.extra"
        )
    if not bits.evaluate:
        raise ConfigError(f"bits.evaluate is empty; expected some of {', '.join(names)}")
    narrowest = min(pair.w for pair in known)
    if low := [average for average in bits.mixed_averages if average < narrowest]:
        raise ConfigError(
            f"bits.mixed_averages asks for {low[0]:g} weight bits on average, but the narrowest pair has {narrowest}; "
            "ask for more, or add a narrower pair to bits.groups or bits.extra"
        )
    widest = max(pair.w for pair in known)
    if high := [average for average in bits.mixed_averages if average > widest]:
        raise ConfigError(
            f"bits.mixed_averages asks for {high[0]:g} weight bits on average, but the widest pair has {widest}; ask "
            "for less, or add a wider pair to bits.groups or bits.extra"
        )
    if len({float(average) for average in bits.mixed_averages}) < len(bits.mixed_averages):
        raise ConfigError(f"bits.mixed_averages={bits.mixed_averages} holds an average twice; expected it once")
    if (bits.w, bits.a) != (None, None) and [list(pair) for pair in pairs] != [[bits.w, bits.a]]:
        raise ConfigError(
            f"bits.w={bits.w} and bits.a={bits.a} are of bits=pair, but bits={bits.name} learns "
            f"{', '.join(map(str, pairs))}; set bits=pair, or leave them"
        )


def _forbid_unknown(config: DictConfig, node: Any, prefix: str = "") -> None:
    """Keys that +KEY=VALUE added where nothing reads them."""
    for key in map(str, config):
        if key not in (known := _fields(node)):
            raise ConfigError(unknown(f"{prefix}{key}"))
        if dataclasses.is_dataclass(known[key]):
            _forbid_unknown(config[key], known[key], f"{prefix}{key}.")


def unknown(key: str, inside: str | None = None) -> str:
    """The message for a key that does not exist: its neighbors, or where a key of that name stands.

    inside: the key that is wrong in the value of `key`, where `key` itself exists.
    """
    if inside is not None and key == "bits.overrides":
        return f"{inside} is no key of bits.overrides; its items have the keys {', '.join(_fields(LayerOverride))}"
    if inside is not None and key in _keys(Config):
        return f"{key} has no key {inside} to be replaced; add it as +{key}.{inside}=..."
    parent, _, last = key.rpartition(".")
    node: Any = Config
    for part in parent.split(".") if parent else []:
        node = _fields(node).get(part)
    if node is not None and not dataclasses.is_dataclass(node):
        return f"{key} is not set anywhere; add it as +{key}=..."
    place = parent if node is not None else ""
    names = [*_fields(node or Config), *([] if place else ["experiment"])]
    near = [full for full in _keys(Config) if full.rpartition(".")[2] == last]
    near = near or [f"{place}.{name}" if place else name for name in _near(last if place else key, names)]
    hint = f" (nearest: {', '.join(near)})" if near else ""
    return f"{key} is no key{hint}; {f'the keys of {place}' if place else 'the groups and keys'} are {', '.join(names)}"


def _fields(node: Any) -> dict[str, Any]:
    """Name -> type of the fields of a dataclass; nothing for another type."""
    return typing.get_type_hints(node) if dataclasses.is_dataclass(node) else {}


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key with a value, dotted."""
    for name, kind in _fields(node).items():
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _near(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a message: " (nearest: a, b)", or nothing where nothing is near."""
    near = _near(name, known)
    return f" (nearest: {', '.join(near)})" if near else ""
