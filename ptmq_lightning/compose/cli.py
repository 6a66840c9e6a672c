"""The command ``python train.py``: Hydra composes conf/, the pipeline runs, every error is one message.

Exit codes: 0 done, 1 the run failed, 2 the command or its configuration is wrong, 130 interrupted (docs/failures.md).
HYDRA_FULL_ERROR=1 shows tracebacks.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from ptmq_lightning.compose import console, sweep
from ptmq_lightning.compose.ending import ending
from ptmq_lightning.compose.interrupt import heeding_interrupts
from ptmq_lightning.compose.words import how_to_quote, quoted_paths, run_label, run_name
from ptmq_lightning.config.build import PAIRS, register
from ptmq_lightning.config.check import PAIR_FORM, typed
from ptmq_lightning.config.declared import every_key
from ptmq_lightning.config.document import help_text
from ptmq_lightning.config.names import nearest, unknown
from ptmq_lightning.config.options import ANY_PAIR, CONF, conf_place, groups, overruled
from ptmq_lightning.config.reads import idle_options, refuse_unread, unread
from ptmq_lightning.config.schema import Config
from ptmq_lightning.runtime.errors import INTERRUPTED, ConfigError, PTMQError, of_system

OWN = {  # where a path was given in place of an option
    "model": "your own network is model=own model.name=FILE.py:NAME, its weights are model.checkpoint=FILE",
    "data": "your own pictures are data=imagefolder data.root=DIR",
}
_TRACEBACKS = os.environ.get("HYDRA_FULL_ERROR") == "1"

log = logging.getLogger(__name__)


def main() -> None:
    """Run the command line of this process; does not return normally where something is wrong."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text())
        return
    _prepare()
    if dashed := with_dashes(sys.argv[1:]):
        _leave(f"found {dashed[0]}; expected a setting without dashes, KEY=VALUE: {dashed[1]}", 2)
    sys.argv[1:] = quoted_paths(exported_bits(console.without_flags(sys.argv[1:])))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises instead of printing and leaving
    try:
        with heeding_interrupts():
            hydra.main(version_base="1.3", config_path=conf_place(), config_name="config")(_task)()
    except (HydraException, OmegaConfBaseException, PTMQError) as error:
        if _TRACEBACKS:
            raise
        if isinstance(error, PTMQError):
            _leave(str(error), _code(error))
        _leave(explain(error), 2)
    except (OSError, MemoryError, SafetensorError) as error:
        if _TRACEBACKS:
            raise
        _leave(of_system(error), 1)
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning leaves with 1 when it is interrupted
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        again = "the same command" if sweep.under_way() else "the same command with resume=true"
        _leave(f"interrupted; finished blocks are kept: {again} goes on from them", INTERRUPTED)
    finally:
        sweep.let_go()


def configuration(overrides: Sequence[str] = ()) -> Config:
    """What the command line ``overrides`` compose, for the library and for tests. Raises ConfigError."""
    _prepare()
    outer = GlobalHydra.instance().hydra  # of a caller that is a Hydra application itself
    GlobalHydra.instance().clear()
    try:
        return _composed(overrides)
    finally:
        GlobalHydra.instance().hydra = outer


def _composed(overrides: Sequence[str]) -> Config:
    place = conf_place()
    if place.startswith("pkg://"):
        start: Any = hydra.initialize_config_module(CONF, version_base="1.3")
    else:
        start = hydra.initialize_config_dir(place, version_base="1.3")
    with start:
        try:
            composed = hydra.compose("config", quoted_paths(overrides), return_hydra_config=True)
            choices = composed.hydra.runtime.choices
            with open_dict(composed):
                del composed["hydra"]
            config = typed(composed)
            refuse_unread(config, overrides)
            tell(config, choices, overrides)
            return config
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error)) from error


def tell(config: Config, choices: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Log what of the command does not count, or gives way to a later choice."""
    given = {name.lstrip("+~"): value for name, _, value in (part.partition("=") for part in overrides)}
    for line in overruled(config, choices, given):
        log.warning("%s", line)
    for line in idle_options(config, {group: value for group, value in given.items() if group in choices}):
        log.warning("%s", line)


def exported_bits(overrides: Sequence[str]) -> list[str]:
    """With artifact=, bits= lists widths to export: Hydra would read its commas as a sweep over options of bits."""
    if not any(part.startswith("artifact=") for part in overrides):
        return list(overrides)
    given = (part.removeprefix("bits=").strip("[]") if part.startswith("bits=") else None for part in overrides)
    return [part if bits is None else f"export.bits=[{bits}]" for part, bits in zip(overrides, given, strict=True)]


def with_dashes(words: Sequence[str]) -> tuple[str, str] | None:
    """The first word that writes a group or a key as a flag ("--bits"), and the setting that it means."""
    known = {*groups(), *(name for name, _, _ in every_key(Config))}
    for word, after in pairwise([*words, ""]):
        name, _, value = word.lstrip("-").partition("=")
        if word.startswith("--") and (key := name.replace("-", "_")) in known:
            value = value or ("VALUE" if not after or "=" in after or after.startswith("-") else after)
            return word, f"{key}={value}"
    return None


def explain(error: Exception) -> str:
    """One message for an error of Hydra or OmegaConf, with the nearest valid names."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.partition("/")
        if group == "hydra":
            inner, _, option = option.partition("/")
            group = f"{group}/{inner}"
        options = sorted(set(error.options) - set(PAIRS))
        pairs = f" or {ANY_PAIR}" if group == "bits" else ""
        near = nearest(option, error.options)
        own = f"; {OWN[group]}" if group in OWN and re.search(r"[/.~]", option) else ""
        return f"{group}={option} is no option{near}; expected {group}={'|'.join(options)}{pairs}{own}"
    message, cause = str(error).strip(), error.__cause__
    if isinstance(error, OverrideParseException):
        if error.override and "=" not in error.override:
            return f"found the word {error.override!r}; expected KEY=VALUE, such as mixer=case1"
        return f"cannot read {error.override or 'the command'} ({_first(message)}); {how_to_quote(error.override)}"
    if found := re.match(r"Ambiguous value for argument '([^=']+)=(.*)'", message):
        key, values = found.groups()
        return (
            f"{key}={values} lists several values; expected one. A run for each: python train.py -m {key}={values}; "
            f"a list as one value: {key}=[{values}]"
        )
    if found := re.match(r"Could not override '([^'@]+)'", message):
        inside = re.match(r"Key '([^']+)' (?:is )?not in", str(cause))
        return unknown(found.group(1), inside.group(1) if inside else None)
    if re.match(r"Error merging override bits\.(groups|extra)=", message):
        return f"{message.splitlines()[0].removeprefix('Error merging override ')} holds no pairs; {PAIR_FORM}"
    lines = [message, str(cause).strip()] if cause is not None else [message]
    return "; ".join(dict.fromkeys(_first(line) for line in lines if line))


def _first(text: str) -> str:
    """The first line, and the next where it ends in a colon."""
    first, *rest = text.splitlines()
    return f"{first} {rest[0].strip()}" if rest and first.endswith(":") else first


def _prepare() -> None:
    register()
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("run_label", run_label, replace=True)
    OmegaConf.register_new_resolver("hydra_level", console.hydra_level, replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep.sweep_name, replace=True, use_cache=True)  # once for all jobs
    OmegaConf.register_new_resolver("cell_name", sweep.cell_name, replace=True)


def _task(config: DictConfig) -> float:
    """One run, in the folder that Hydra made for it; its errors end a single run here, a sweep notes them."""
    if sweep.is_job():
        return sweep.run_job(lambda: _run(config))
    try:
        with console.of_run():
            value = _run(config)
        if told := ending(Path(HydraConfig.get().runtime.output_dir)):
            print(told, file=sys.stderr)
        return value
    except PTMQError as error:
        if _TRACEBACKS:
            raise
        log.error("error: %s", error)
        sys.exit(_code(error))


def _run(config: DictConfig) -> float:
    plain, command = typed(config), HydraConfig.get()
    if not sweep.is_job():
        refuse_unread(plain, command.overrides.task)
    elif sweep.resumes(command.overrides.task):
        plain = replace(plain, resume=True)
    for line in unread(plain, command.overrides.task):  # a sweep may pass choices that do not read the key
        log.warning("%s", line)
    tell(plain, command.runtime.choices, command.overrides.task)
    if plain.export.name != "none" and plain.artifact is not None:
        from ptmq_lightning.compose.export import run_export

        return run_export(plain, Path(command.runtime.output_dir))
    from ptmq_lightning.compose.pipeline import run  # torch and timm load here: --help answers at once

    return run(plain, Path(command.runtime.output_dir))


def _code(error: PTMQError) -> int:
    return 2 if isinstance(error, ConfigError) else 1


def _leave(message: str, code: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
