"""Answers to names that do not exist: the nearest ones that do."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from ptmq_lightning.config.declared import every_key, keys_of
from ptmq_lightning.config.schema import Config
from ptmq_lightning.quant.insert import Override


def unknown(key: str, inside: str | None = None) -> str:
    """The message for a key that does not exist: its neighbors, or where a key of that name stands.

    Args:
        inside: the key that is wrong in the value of `key`, where `key` itself exists.
    """
    every = [name for name, _, _ in every_key(Config)]
    if inside is not None and key == "placement.overrides":
        return f"{inside} is no key of {key}; its items have the keys {', '.join(keys_of(Override))}"
    if inside is not None and key in every:
        return f"{key} has no key {inside} to be replaced; add it as +{key}.{inside}=..."
    parent, _, last = key.rpartition(".")
    node: Any = Config
    for part in parent.split(".") if parent else []:
        node = keys_of(node).get(part, (None, None))[1]
    if node is not None and not dataclasses.is_dataclass(node):
        return f"{key} is not set anywhere; add it as +{key}=..."
    place = parent if node is not None else ""
    names = [*keys_of(node or Config), *([] if place else ["experiment"])]
    near = [full for full in every if full.rpartition(".")[2] == last]
    near = near or [f"{place}.{name}" if place else name for name in _near(last if place else key, names)]
    hint = f" (nearest: {', '.join(near)})" if near else ""
    return f"{key} is no key{hint}; {f'the keys of {place}' if place else 'the groups and keys'} are {', '.join(names)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """What to add to a message: " (nearest: a, b)", or nothing where nothing is near."""
    near = _near(name, known)
    return f" (nearest: {', '.join(near)})" if near else ""


def _near(name: str, known: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
