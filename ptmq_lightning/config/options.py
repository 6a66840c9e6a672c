"""The files of conf/: which options a group has, what one says of itself, and what a later choice took from it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ptmq_lightning.config.build import PAIRS
from ptmq_lightning.config.declared import value_of
from ptmq_lightning.config.schema import Config
from ptmq_lightning.runtime.keys import flat

CONF = "ptmq_lightning.conf"  # conf/ at the root of the repository, inside the wheel
ANY_PAIR = f"any pair {PAIRS[0]} to {PAIRS[-1]}"


@dataclass(frozen=True)
class Option:
    """One file. about: its comment. chosen: the options of other groups that it takes. values: dotted key -> value."""

    about: str
    chosen: Mapping[str, str]
    values: Mapping[str, Any]


def conf_place() -> str:
    """Where Hydra finds conf/: the package of an installation, the folder beside it in a bare source tree."""
    if importlib.util.find_spec(CONF) is not None:
        return f"pkg://{CONF}"
    return str(Path(__file__).resolve().parents[2] / "conf")


def conf_folder() -> Path:
    """The folder of the same files."""
    spec = importlib.util.find_spec(CONF)
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent
    return Path(conf_place())


@cache
def groups() -> dict[str, list[str]]:
    """The options of every group that has some, in the order of the alphabet."""
    folders = [folder for folder in conf_folder().iterdir() if any(folder.glob("*.yaml"))]
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in sorted(folders)}


@cache
def option(group: str, name: str) -> Option | None:
    """A file of conf/; None for an option without one, such as bits=w3a7."""
    file = conf_folder() / group / f"{name}.yaml"
    if not file.exists():
        return None
    lines = file.read_text(encoding="utf-8").splitlines()
    comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
    whole = comments[:1] == ["@package _global_"]
    content = yaml.safe_load("\n".join(lines)) or {}
    listed = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
    chosen = {key.removeprefix("override /"): of for entry in listed for key, of in entry.items() if "override" in key}
    content.pop("hydra", None)
    return Option(" ".join(comments[whole:]), chosen, dict(flat(content if whole else {group: content})))


def overruled(config: Config, choices: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[str]:
    """A line for everything that an option of the command brings and a later choice replaced without being typed.

    Args:
        choices: the option of every group, as Hydra composed them.
        given: what was typed, GROUP or KEY -> text.
    """
    by = f"experiment={choices['experiment']}" if choices.get("experiment") else "a later choice"
    typed = {group: found for group, name in given.items() if group in choices and (found := option(group, name))}
    for group, found in typed.items():
        told = f"of {by} replaces {{}} of {group}={given[group]}; for that, say {{}}"
        taken = {other: of for other, of in found.chosen.items() if other not in given and choices.get(other) != of}
        for other, of in taken.items():
            wanted = f"{other}={of}"
            yield f"{other}={choices.get(other)} {told.format(wanted, wanted)}"
        explicit = {*given, *(key for other, each in typed.items() if other != group for key in each.values)}
        for key, value in found.values.items():
            place = key.split(".")[0]
            typed_over = key in explicit or (place != group and place in given)
            if not typed_over and place not in taken and not _same(config, key, value):
                yield f"{key} {told.format(f'{key}={value}', f'{key}={value}')}"


def _same(config: Config, key: str, value: Any) -> bool:
    """Whether the run has a file's value; true for one that refers to others."""
    now = value_of(config, key)
    if isinstance(value, str) and "$" in value:
        return True
    if isinstance(now, float) and not isinstance(value, list):
        return now == float(value)
    return str(_listed(now)) == str(_listed(value))


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
