"""One declaration per key: a dataclass field carries its default, help, range and choices.

    @dataclass(frozen=True)
    class Mixer:
        p: float = key(0.5, "share of float features in the mix", least=0, most=1)

`config` reads the declarations: for the checks, for --help and for docs/configuration.md. Standard library alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

MISSING: Any = dataclasses.MISSING


def key(
    default: Any = MISSING,
    help: str = "",
    *,
    factory: Callable[[], Any] | None = None,
    least: float = -math.inf,
    most: float = math.inf,
    choices: Collection[Any] | Callable[[], Collection[Any]] = (),
) -> Any:
    """A dataclass field that can be set from outside.

    Args:
        default, factory: as of `dataclasses.field`; neither: the key must be given.
        help: one line, without a period.
        least, most: the range of a number, ends included.
        choices: the values that it may take, or a function that lists them (of a registry that grows later).
    """
    metadata = {"help": help, "least": least, "most": most, "choices": choices}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def choices_of(field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """The values that a key may take; () where any of its type may be given."""
    choices = field.metadata.get("choices", ())
    return tuple(choices() if callable(choices) else choices)


def range_of(field: dataclasses.Field[Any]) -> tuple[float, float]:
    """Least and greatest value of a number."""
    return field.metadata.get("least", -math.inf), field.metadata.get("most", math.inf)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested settings and their plain values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
