"""The declarations of `config.schema`, walked: which keys there are, of which type, with which value."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

Declaration = dataclasses.Field[Any]


def keys_of(group: Any) -> dict[str, tuple[Declaration, Any]]:
    """Name -> (declaration, type) of the keys of a dataclass; nothing for another type."""
    if not dataclasses.is_dataclass(group):
        return {}
    types = typing.get_type_hints(group)
    return {field.name: (field, types[field.name]) for field in dataclasses.fields(group) if "help" in field.metadata}


def every_key(group: Any, prefix: str = "") -> Iterator[tuple[str, Declaration, Any]]:
    """(dotted name, declaration, type) of every key that holds a value, in order."""
    for name, (field, kind) in keys_of(group).items():
        if dataclasses.is_dataclass(kind):
            yield from every_key(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field, kind


def every_value(group: Any, plain: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Declaration, Any]]:
    """(dotted name, declaration, value) of every key in plain values, those of the items of lists included."""
    for name, (field, kind) in keys_of(group).items():
        value = plain[name]
        if dataclasses.is_dataclass(kind):
            yield from every_value(kind, value, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", field, value
        for inner in typing.get_args(kind) if isinstance(value, list) else ():
            for number, item in enumerate(value if dataclasses.is_dataclass(inner) else ()):
                yield from every_value(inner, item, f"{prefix}{name}[{number}].")


def completed(group: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a run of an earlier version: keys that it did not have yet are at their declared values, at which
    a new key changes nothing."""
    made = dict(plain)
    for name, (field, kind) in keys_of(group).items():
        if dataclasses.is_dataclass(kind):
            made[name] = completed(kind, plain.get(name, {}))
        elif name not in plain and (value := default_of(field)) is not dataclasses.MISSING:
            made[name] = list(value) if isinstance(value, tuple) else value
    return made


def value_of(config: Any, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def default_of(field: Declaration) -> Any:
    """What a key has where nothing sets it; `dataclasses.MISSING` where something must."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
