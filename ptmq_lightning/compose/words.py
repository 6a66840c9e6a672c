"""The words of the command line: a run's folder is named by them, and paths among them may hold any sign.

Hydra takes letters of ASCII, digits and a few signs as they are, and wants quotes of its own, inside those of the
shell, around anything else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from ptmq_lightning.config.options import groups

NAME_LENGTH = 120
PATHS = (
    "model.checkpoint", "model.classes", "model.name", "data.root", "data.train", "data.val", "data.class_map",
    "artifact", "export.out", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip
_PLAIN = re.compile(
    r"[+]{0,2}[\w.]+=(?:[A-Za-z0-9.+_]*|[A-Za-z0-9.+]+(-[A-Za-z0-9.+]+)*)", re.ASCII
)  # told apart by their names alone
_NO_WORD = re.compile(r"[+-]?[0-9][0-9_.e+-]*|true|false|null|inf|nan", re.ASCII | re.IGNORECASE)


def run_name(choices: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """A folder name that follows from the command: the experiment's or the model's name, then the other overrides, as
    in `resnet18/mixer-case3_seed-0`. Letters, digits and "._+-/" are its signs: no shell and no Hydra wants quotes.

    The same overrides give the same name, different ones different names; ``resume`` does not count.
    """
    group = "experiment" if choices.get("experiment") else "model"
    parts = [part for part in overrides if part.split("=")[0].lstrip("+") not in ("resume", group)]
    return f"{choices[group]}/{folder_name(parts)}"


def folder_name(overrides: Sequence[str]) -> str:
    """The same of the overrides alone: `mixer-case3_seed-0`."""
    safe = "_".join(re.sub(r"[^A-Za-z0-9_.+]+", "-", part.lstrip("+")).rstrip("-") for part in overrides)
    if not all(map(_PLAIN.fullmatch, overrides)) or len(safe) > NAME_LENGTH:
        safe = f"{safe[:NAME_LENGTH]}-{hashlib.sha256(','.join(overrides).encode()).hexdigest()[:8]}"
    return safe or "default"


def run_label(number: int | None) -> str:
    """What a line of a sweep's log begins with, so that runs side by side can be told apart: "#0 ", the number that
    Hydra lists at the start; of a single run (None) nothing."""
    return "" if number is None else f"#{number} "


def quoted_paths(words: Sequence[str]) -> list[str]:
    """With Hydra's quotes around each path that holds signs which Hydra reads otherwise, and around an option such as
    the 4 of bits=4, which it reads as a number and then fails on. In a sweep (-m) a comma separates values, and such
    words stay as they are."""
    sweep = bool({"-m", "--multirun"} & set(words))
    return [word if sweep and "," in word else _quoted(word) for word in words]


def how_to_quote(override: str | None) -> str:
    """The cure where Hydra cannot read an override."""
    name, _, value = (override or "KEY=VALUE").partition("=")
    return (
        f"expected letters, digits and /-+.$%*@?|: alone, or quotes inside quotes around the value: "
        f"'{name}={QuotedString(value, Quote.double).with_quotes()}'"
    )


def _quoted(word: str) -> str:
    name, _, value = word.partition("=")
    if _NO_WORD.fullmatch(value) and name in groups():
        return f"{name}={QuotedString(value, Quote.single).with_quotes()}"
    if name.lstrip("+") not in PATHS or not value or value[0] in "'\"[{$" or value == "null":
        return word
    if re.fullmatch(r"[A-Za-z0-9_/\-+.%*@?|:]+", value):
        return word
    return f"{name}={QuotedString(value, Quote.double).with_quotes()}"
