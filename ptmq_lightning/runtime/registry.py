"""Variants by name: a class joins with a decorator, from this package or from outside it. Standard library alone.

@MIXERS.register("case4")
class Case4(GroupMixer): ...
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from ptmq_lightning.runtime.errors import ConfigError

T = TypeVar("T")
V = TypeVar("V")


class Registry(Generic[T]):
    """The variants of one kind, in the order in which they joined.

    Args:
        what: the kind's name in messages, such as "mixer".
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.variants: dict[str, T] = {}

    def register(self, name: str) -> Callable[[V], V]:
        """A decorator that adds a variant.

        Raises:
            ConfigError: another variant has this name.
        """

        def add(variant: V) -> V:
            if name in self.variants:
                raise ConfigError(f"found a second {self.what} {name!r}; expected a name that is free. Choose another.")
            self.variants[name] = variant  # type: ignore[assignment]
            return variant

        return add

    def names(self) -> tuple[str, ...]:
        """Every name, those of variants from outside too: the choices of a key."""
        return tuple(self.variants)

    def __iter__(self) -> Iterator[str]:
        return iter(self.variants)

    def __getitem__(self, name: str) -> T:
        """Raises ConfigError for a name that no variant has."""
        if name not in self.variants:
            near = difflib.get_close_matches(name, self.variants, n=3, cutoff=0.5)
            hint = f" (nearest: {', '.join(near)})" if near else ""
            raise ConfigError(f"found {self.what} {name!r}{hint}; expected one of {', '.join(self.variants)}.")
        return self.variants[name]


def made(registry: Registry[Any], keys: Any, *args: Any) -> Any:
    """The variant that `keys.name` names, made of the keys and what else it takes."""
    return registry[keys.name](keys, *args)
