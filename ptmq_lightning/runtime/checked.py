"""Values of JSON against the types that they should have. Standard library alone."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from ptmq_lightning.runtime.errors import ConfigError, PTMQError

NUMBER = (int, float)
OPTIONAL = (int, float, type(None))
SHOWN = 5  # names of keys in a message


def printable(text: str) -> str:
    """Text of a stranger's file for a terminal or a log: what would steer it is escaped, line breaks among it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def check(value: Any, expected: Any, place: str, error: type[PTMQError] = ConfigError) -> None:
    """Compare a value with what is expected of it.

    Args:
        value: of JSON.
        expected: a type, a tuple of types, or a mapping of keys to such, all of which must be there and no others.
        place: how a message calls the value, such as "rows[2].top1".
        error: what is raised.

    Raises:
        PTMQError: of the kind `error`, naming the place; also for a number that is not finite.
    """
    if isinstance(expected, dict):
        _check_keys(value, expected, place, error)
        for key, inner in expected.items():
            check(value[key], inner, f"{place}.{key}", error)
        return
    types = expected if isinstance(expected, tuple) else (expected,)
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):  # True is an int to Python
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
        raise error(f"{place} is {reprlib.repr(value)} ({type(value).__name__}), expected {names}")
    if isinstance(value, float) and not math.isfinite(value):
        raise error(f"{place} is {value}, expected a finite number; look for a diverged block in metrics.csv")


def _check_keys(value: Any, expected: Mapping[str, Any], place: str, error: type[PTMQError]) -> None:
    if not isinstance(value, Mapping):
        raise error(
            f"{place} is {reprlib.repr(value)} ({type(value).__name__}), expected the keys {', '.join(expected)}"
        )
    missing, unknown = [key for key in expected if key not in value], [key for key in value if key not in expected]
    if missing or unknown:
        raise error(
            f"{place} lacks {_few(missing) or 'nothing'} and has the unknown {_few(unknown) or 'nothing'}; "
            f"expected exactly {', '.join(expected)}"
        )


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(name[:100] for name in listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")
