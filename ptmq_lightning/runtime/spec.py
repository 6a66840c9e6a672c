"""Bit-widths as values: a pair of widths, one pair per layer, and groups of pairs to draw from (PTMQ §1.1, §1.6)."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ptmq_lightning.runtime.errors import ConfigError

MIN_BITS, MAX_BITS = 2, 8
LATENT_BITS = 11  # of the integers that all widths of a weight are made of (PTMQ §2)
OFFSET_BITS = 5  # of a learned offset tau
TABLE_BITS = 8  # of the uniform grid that a table chooses its levels from
HELD_BITS = 7  # that an integer runtime gives the codes of a narrow weight (export.values)
ZEROS = (0, -1, -2)  # zero points of weights in half levels: none; symmetric levels; one more above zero than below
MOST_ZERO = HELD_BITS - 1  # bits of a weight that may have zero points: its whole numbers take one more


class BitWidth(NamedTuple):
    """Bits of the weights and bits of the activations of a layer."""

    w: int
    a: int

    def __str__(self) -> str:
        return f"w{self.w}a{self.a}"

    @classmethod
    def parse(cls, text: str | int | Iterable[int] | BitWidth) -> BitWidth:
        """A width from "w4a8", 4 (both), or a pair. Raises ConfigError for anything else, and outside 2..8."""
        values: Any
        if isinstance(text, str):
            match = re.fullmatch(r"w(\d+)a(\d+)", text)
            values = (int(match[1]), int(match[2])) if match else ()
        elif isinstance(text, bool):
            values = ()
        else:
            values = text if isinstance(text, Iterable) else (text, text)
        try:
            w, a = map(operator.index, values)  # whole numbers of any library, no fractions
        except (TypeError, ValueError):
            raise ConfigError(
                f"found the bit-width {text!r}; expected a number, a pair (w, a) or a name like 'w4a8'."
            ) from None
        pair = (w, a)
        if not all(MIN_BITS <= bits <= MAX_BITS for bits in pair):
            raise ConfigError(
                f"found the bit-width w{pair[0]}a{pair[1]}; expected {MIN_BITS} to {MAX_BITS} bits for weights and "
                f"activations. Choose widths in that range."
            )
        return cls(*pair)


@dataclass(frozen=True)
class BitAssignment:
    """Layer name -> width, in the order of execution; hashable and JSON-able."""

    layers: tuple[tuple[str, BitWidth], ...]

    def __getitem__(self, name: str) -> BitWidth:
        return dict(self.layers)[name]

    def items(self) -> Iterator[tuple[str, BitWidth]]:
        return iter(self.layers)

    def to_json(self) -> dict[str, list[int]]:
        return {name: [width.w, width.a] for name, width in self.layers}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BitAssignment:
        return cls(tuple((name, BitWidth.parse(pair)) for name, pair in data.items()))

    @classmethod
    def uniform(cls, w: int, a: int, model: Any) -> BitAssignment:
        """The same pair in every layer of a MultiBitModel, pinned layers at the width they are pinned to."""
        return cls(tuple((name, layer.width(BitWidth(w, a))) for name, layer in model.layers.items()))

    def average(self, model: Any) -> tuple[float, float]:
        """Mean weight bits (by weight count) and mean activation bits (by layer), each over what is not pinned."""
        layers = [(model.layers[name], width) for name, width in self.layers]
        weights = [(layer.weights, width.w) for layer, width in layers if layer.weights and layer.pin_w is None]
        inputs = [width.a for layer, width in layers if layer.pin_a is None]
        total = sum(count for count, _ in weights)
        return sum(n * w for n, w in weights) / max(total, 1), sum(inputs) / max(len(inputs), 1)


@dataclass(frozen=True)
class BitGroups:
    """Disjoint groups of widths from low to high; every reconstruction step draws one width of each (PTMQ §1.6)."""

    groups: tuple[tuple[BitWidth, ...], ...]

    def __post_init__(self) -> None:
        if not self.groups or not all(self.groups):
            raise ConfigError(
                f"found the bit groups {[list(map(str, g)) for g in self.groups]}; expected at least one group and no "
                f"empty one, e.g. [[w3a3, w4a4], [w8a8]]."
            )
        doubled = {str(pair) for pair in self.pairs if self.pairs.count(pair) > 1}
        if doubled:
            raise ConfigError(f"found {', '.join(sorted(doubled))} more than once in the bit groups; expected it once.")

    @property
    def pairs(self) -> tuple[BitWidth, ...]:
        return tuple(pair for group in self.groups for pair in group)

    def to_json(self) -> list[list[list[int]]]:
        return [[list(pair) for pair in group] for group in self.groups]

    @classmethod
    def from_json(cls, data: Any) -> BitGroups:
        """What `to_json` gave. Raises ConfigError for anything else."""
        if not isinstance(data, list) or not all(isinstance(group, list) for group in data):
            raise ConfigError(f"found the bit groups {data!r}; expected lists of pairs, such as [['w3a3'], ['w8a8']].")
        return cls.of(data)

    @classmethod
    def of(cls, groups: Iterable[Iterable[Any]]) -> BitGroups:
        """Groups from plain lists, e.g. [[3, 4], [[5, 6]], ["w8a8"]]."""
        return cls(tuple(tuple(BitWidth.parse(pair) for pair in group) for group in groups))
