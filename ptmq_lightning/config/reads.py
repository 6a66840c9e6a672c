"""Which choices leave a key unread: what was typed on the command line and changes nothing is refused, not ignored.

A new variant reads every key of its group unless a rule here says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ptmq_lightning.config.declared import value_of
from ptmq_lightning.config.options import option
from ptmq_lightning.config.schema import Config
from ptmq_lightning.export.targets import backends, unpacking
from ptmq_lightning.runtime.errors import ConfigError

Values = tuple[Any, ...] | Callable[[], tuple[Any, ...]]
TRAINED = {"finetune.name": ("any_precision", "multiquant")}  # the network as a whole: no block is reconstructed
NEAREST = {"rounding.name": ("nearest",)}
PAIRED = {"loss.name": ("gd_direct", "gd_chain", "mse")}  # no mixture, no gammas
GIVEN = ("any value but null",)
EXPORTED: Mapping[str, Values] = {"export.name": backends, "artifact": GIVEN}  # no run
FIT = ("recon.*", "tune.*", "mixer.*", "loss.*", "rounding.*", "step_size.learn")
METHOD = ("method.unit", "method.quantize", "method.activation", "method.drop")


@dataclass(frozen=True)
class Rule:
    """keys: patterns of keys that nothing reads where each key of `where` has one of its values (a function where a
    registry has them)."""

    keys: tuple[str, ...]
    where: Mapping[str, Values]

    def idle(self, config: Config) -> bool:
        return all(_has(value_of(config, key), self.values(key)) for key in self.where)

    def values(self, key: str) -> tuple[Any, ...]:
        values = self.where[key]
        return values() if callable(values) else values

    def about(self, key: str) -> bool:
        return any(fnmatchcase(key, pattern) for pattern in self.keys)


def _has(value: Any, values: tuple[Any, ...]) -> bool:
    return value is not None if values is GIVEN else value in values


def rule(keys: str, **where: Any) -> Rule:
    """From "loss.chain_k loss.gammas", loss__name=("mse",)."""
    return Rule(tuple(keys.split()), {key.replace("__", "."): values for key, values in where.items()})


RULES = (
    Rule((*FIT, *METHOD, "method.bias_correction", "fold.equalize"), TRAINED),  # its norms stand between the layers
    Rule(("mixer.*", "loss.*", "rounding.*", *METHOD), NEAREST),
    Rule(("step_size.learn",), NEAREST | {"tune.iters": (0,)}),
    rule("recon.activation_iters recon.lr_* recon.lambda_* recon.warmup recon.beta_*", rounding__name=("nearest",)),
    rule("recon.iters recon.log_every", rounding__name=("nearest",), tune__iters=(0,)),
    Rule(("recon.*", "tune.*"), NEAREST | {"method.bias_correction": ("none",)}),
    rule("tune.rate", tune__iters=(0,)),
    Rule(("placement.deploy",), TRAINED),  # norms would stand between a layer and its rounding; nothing is exported
    Rule(("trainer.cache",), TRAINED),
    Rule(("trainer.cache",), EXPORTED),
    Rule(("trainer.cache",), NEAREST | {"method.bias_correction": ("none",)}),
    rule("recon.lambda_rounding recon.warmup recon.beta_*", rounding__name=("ste", "flexround")),
    rule("recon.lr_activation", method__activation=("fixed",)),
    rule("recon.activation_iters", method__activation=("joint", "fixed")),
    rule("recon.lr_weight_step_size", step_size__learn=(False,)),
    rule("mixer.p", mixer__name=("none", "float")),
    Rule(("mixer.weights",), PAIRED | {"mixer.name": ("case1", "case2", "matched", "float")}),
    Rule(("loss.gammas", "loss.stop_gradient"), PAIRED),
    rule("loss.chain_k", loss__name=("gd_figure", "gd_direct", "mse")),
    rule("loss.tokens", loss__norm=("none",)),
    rule("loss.tokens", loss__weight=("fim", "aph")),
    rule("loss.tokens", method__unit=("layer",)),
    rule("rounding.planes rounding.tolerance", rounding__name=("shared", "offset", "per_width", "ste", "flexround")),
    rule("rounding.init_width", rounding__name=("per_width",)),
    rule("step_size.zero_points", step_size__name=("power_of_two",)),
    rule("step_size.zero_points", step_size__name=("nested",), step_size__free_widths=([],)),
    rule("step_size.anchor step_size.free_widths", step_size__name=("free", "power_of_two")),
    rule("allocate.*", allocate__name=("none",)),
    Rule(("allocate.activations",), TRAINED),  # norms belong to the pairs that were trained
    rule("finetune.*", finetune__name=("none",)),
    rule("step_size.*", finetune__name=("any_precision",)),  # its grid is DoReFa's
    rule("finetune.lr_step_size", finetune__name=("robustquant",)),
    rule("finetune.kurtosis_weight", finetune__name=("any_precision", "multiquant")),
    rule("finetune.statistics_images", finetune__name=("any_precision", "robustquant")),
    rule("logger.*", logger__name=("csv", "tensorboard")),
    rule("export.* artifact", export__name=("none",)),
    rule("export.packed", export__form=("switchable", "multi")),
    rule("export.packed", export__name=unpacking),
    Rule(
        (*FIT, "method.*", "model.*", "bits.*", "allocate.*", "placement.*", "step_size.*", "fold.*", "finetune.*"),
        EXPORTED,
    ),
    Rule(("data.calibration_images", "data.step_size_images", "data.eval_batch", "data.workers", "resume"), EXPORTED),
)


def unread(config: Config, overrides: Iterable[str]) -> Iterator[str]:
    """A message for each override KEY=VALUE of a key that nothing in this run reads. The choice itself, KEY.name, is
    always read."""
    for override in overrides:
        key = key_of(override)
        if key.endswith(".name"):
            continue
        for found in (rule for rule in RULES if rule.about(key) and rule.idle(config)):
            yield f"{override} would change nothing: {_because(config, found)}; leave it out, or choose another"
            break


def refuse_unread(config: Config, overrides: Sequence[str]) -> None:
    """Raises ConfigError."""
    for message in unread(config, overrides):
        raise ConfigError(message)


def idle_options(config: Config, given: Mapping[str, str]) -> Iterator[str]:
    """A line for each option GROUP=OPTION of the command that changes nothing in this run."""
    for group, name in given.items():
        brings = option(group, name)
        if brings is not None and any(not key.startswith(f"{group}.") for key in brings.values):
            continue  # it sets keys of other groups too
        for found in (rule for rule in RULES if f"{group}.*" in rule.keys and rule.idle(config)):
            if f"{group}.name" not in found.where:
                yield f"{group}={name} changes nothing in this run: {_because(config, found)}"
                break


def _because(config: Config, found: Rule) -> str:
    """Such as "with loss=mse nothing reads it"."""
    chosen = " and ".join(f"{key.removesuffix('.name')}={_text(value_of(config, key))}" for key in found.where)
    return f"with {chosen} nothing reads it"


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def key_of(override: str) -> str:
    """The key or group of an override of the command line."""
    return override.split("=", 1)[0].lstrip("+~")
