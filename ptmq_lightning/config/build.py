"""The declarations for Hydra, and back: what Hydra composed as the frozen objects that the rooms take.

OmegaConf knows lists alone and makes a frozen class read-only, hence a class of its own for each group.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import typing
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from ptmq_lightning.config.declared import default_of, keys_of
from ptmq_lightning.config.schema import Config
from ptmq_lightning.runtime.spec import MAX_BITS, MIN_BITS, BitWidth

WIDTHS = range(MIN_BITS, MAX_BITS + 1)
PAIRS = tuple(str(BitWidth(w, a)) for w, a in itertools.product(WIDTHS, WIDTHS))  # each an option of the group bits


@functools.cache  # a fifth of the time that a composition takes
def register() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml lists first, and bits=w4a8 for any pair."""
    store = ConfigStore.instance()
    store.store(name="schema", node=mutable(Config))
    for pair in PAIRS:
        store.store(group="bits", name=pair, node={"name": pair, "groups": [[pair]]})


@functools.cache
def mutable(group: type) -> type:
    """The class that OmegaConf takes for a group: the same keys, lists for tuples."""
    fields = [(name, _listed(kind), _field(field, kind)) for name, (field, kind) in keys_of(group).items()]
    return dataclasses.make_dataclass(group.__name__, fields)


def _field(field: dataclasses.Field[Any], kind: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return dataclasses.field(default_factory=mutable(typing.cast(type, kind)))
    default = default_of(field)
    if default is dataclasses.MISSING:
        default = MISSING
    if isinstance(default, tuple | list | dict):
        return dataclasses.field(default_factory=functools.partial(_plain, default))
    return dataclasses.field(default=default)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else copy.copy(value)


def _listed(kind: Any) -> Any:
    if typing.get_origin(kind) in (tuple, list):
        inner = _listed(typing.get_args(kind)[0])
        return list[inner]  # type: ignore[valid-type]
    return mutable(typing.cast(type, kind)) if dataclasses.is_dataclass(kind) else kind


def built(kind: Any, value: Any) -> Any:
    """Plain values as an object of the type `kind`.

    Args:
        value: of a group a dict of all its keys, of a tuple a list.

    Raises:
        ConfigError: the room that takes the object refuses a value.
    """
    if dataclasses.is_dataclass(kind):
        types = {name: of for name, (_, of) in keys_of(kind).items()}
        return typing.cast(type, kind)(**{name: built(types[name], item) for name, item in value.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(built(typing.get_args(kind)[0], item) for item in value)
    if typing.get_origin(kind) is list:
        return [built(typing.get_args(kind)[0], item) for item in value]
    return value
