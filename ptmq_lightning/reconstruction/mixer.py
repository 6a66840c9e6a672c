"""The multi-bit feature mixer: what a block is fed while it is reconstructed (PTMQ §1.7; "matched": §9.1).

A mixer keeps streams of features behind the quantized blocks. In the paper's cases there is one stream per group, made
by running the finished block on their blend; "matched" keeps one stream per width, so that each width meets its own
error. M is Bernoulli(p), drawn anew in every iteration, the same for all groups; M = 1 takes the float feature. With
one width, "matched" is QDrop's mix and "none" the quantized features alone (§3).
B batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.registry import Registry
from ptmq_lightning.runtime.spec import BitGroups, BitWidth

MIXERS: Registry[type[Mixer]] = Registry("mixer")

Run = Callable[[Tensor, BitWidth], Tensor]  # the finished block on a tensor, at a width
Mask = Callable[[torch.Size], Tensor]  # M of a shape


class Streams(Protocol):
    """Features (B, ...) by stream key."""

    def __getitem__(self, key: Hashable, /) -> Tensor: ...


@dataclass(frozen=True)
class MixerKeys:
    """How the input of a block is mixed of float and quantized features."""

    name: str = key("case3", "what a block is fed while it is fitted", choices=MIXERS.names)
    p: float = key(0.5, "share of float features in the mix (in case 2 of the lowest group's)", least=0, most=1)
    weights: list[float] = key(
        factory=list, help="of the groups, low to high; empty: 0.4 on the lowest and the rest in equal parts"
    )

    def __post_init__(self) -> None:
        if self.weights and abs(sum(self.weights) - 1) > 1e-6:
            raise ConfigError(f"found mixer.weights={self.weights} with sum {sum(self.weights):g}; expected sum 1.")


class Mixer(ABC):
    """One way to feed a block. Variants join by `@MIXERS.register(name)`."""

    def __init__(self, keys: MixerKeys) -> None:
        self.keys = keys

    @property
    def p(self) -> float:
        """Share of ones in M."""
        return self.keys.p

    @abstractmethod
    def streams(self, groups: BitGroups) -> tuple[Hashable, ...]:
        """Keys of the feature streams that are cached beside the float features."""

    @abstractmethod
    def propagate(
        self, streams: Streams, groups: BitGroups, run: Run, generator: torch.Generator
    ) -> dict[Hashable, Tensor]:
        """A batch's streams (B, ...) behind a finished block."""

    @abstractmethod
    def inputs(
        self, fp: Tensor, streams: Streams, drawn: Sequence[BitWidth], mask: Mask, generator: torch.Generator
    ) -> list[Tensor]:
        """Input (B, ...) for each drawn width, low to high; fp: the float features (B, ...)."""


class GroupMixer(Mixer):
    """The paper's cases: a stream per group, and one input for all drawn widths, made of a blend of the streams."""

    @abstractmethod
    def blend(self, features: Sequence[Tensor], chosen: int) -> Tensor:
        """The features of all groups as one tensor (B, ...), with no float feature and no mask; chosen: a group drawn
        at random."""

    def streams(self, groups: BitGroups) -> tuple[Hashable, ...]:
        return tuple(range(len(groups.groups)))

    def propagate(
        self, streams: Streams, groups: BitGroups, run: Run, generator: torch.Generator
    ) -> dict[Hashable, Tensor]:
        x = self.blend([streams[g] for g in range(len(groups.groups))], _randint(len(groups.groups), generator))
        return {g: run(x, group[_randint(len(group), generator)]) for g, group in enumerate(groups.groups)}

    def inputs(
        self, fp: Tensor, streams: Streams, drawn: Sequence[BitWidth], mask: Mask, generator: torch.Generator
    ) -> list[Tensor]:
        return [self.mixed(fp, [streams[g] for g in range(len(drawn))], mask, generator)] * len(drawn)

    def mixed(self, fp: Tensor, features: Sequence[Tensor], mask: Mask, generator: torch.Generator) -> Tensor:
        """M f + (1 - M) blend."""
        return torch.lerp(self.blend(features, _randint(len(features), generator)), fp, mask(fp.shape))


@MIXERS.register("none")
class NoFloat(GroupMixer):
    """The weighted sum of the groups' features, and no float feature."""

    def blend(self, features: Sequence[Tensor], chosen: int) -> Tensor:
        return weighted(features, self.keys.weights)

    def mixed(self, fp: Tensor, features: Sequence[Tensor], mask: Mask, generator: torch.Generator) -> Tensor:
        return self.blend(features, 0)


@MIXERS.register("case1")
class Case1(GroupMixer):
    """The features of one group, drawn at random, mixed with the float feature."""

    def blend(self, features: Sequence[Tensor], chosen: int) -> Tensor:
        return features[chosen]


@MIXERS.register("case2")
class Case2(GroupMixer):
    """The lowest group's features mixed with the mean of the others', and no float feature."""

    def blend(self, features: Sequence[Tensor], chosen: int) -> Tensor:
        return (features[0] + _above_lowest(features)) / 2

    def mixed(self, fp: Tensor, features: Sequence[Tensor], mask: Mask, generator: torch.Generator) -> Tensor:
        return torch.lerp(_above_lowest(features), features[0], mask(fp.shape))


@MIXERS.register("case3")
class Case3(GroupMixer):
    """The weighted sum of the groups' features mixed with the float feature."""

    def blend(self, features: Sequence[Tensor], chosen: int) -> Tensor:
        return weighted(features, self.keys.weights)


@MIXERS.register("matched")
class Matched(Mixer):
    """A stream per width: each drawn width gets its own features mixed with the float feature, as in QDrop."""

    def streams(self, groups: BitGroups) -> tuple[Hashable, ...]:
        return groups.pairs

    def propagate(
        self, streams: Streams, groups: BitGroups, run: Run, generator: torch.Generator
    ) -> dict[Hashable, Tensor]:
        return {pair: run(streams[pair], pair) for pair in groups.pairs}

    def inputs(
        self, fp: Tensor, streams: Streams, drawn: Sequence[BitWidth], mask: Mask, generator: torch.Generator
    ) -> list[Tensor]:
        m = mask(fp.shape)
        return [torch.lerp(streams[pair], fp, m) for pair in drawn]


@MIXERS.register("float")
class Float(Mixer):
    """The float feature alone; no stream is kept."""

    def streams(self, groups: BitGroups) -> tuple[Hashable, ...]:
        return ()

    def propagate(
        self, streams: Streams, groups: BitGroups, run: Run, generator: torch.Generator
    ) -> dict[Hashable, Tensor]:
        return {}

    def inputs(
        self, fp: Tensor, streams: Streams, drawn: Sequence[BitWidth], mask: Mask, generator: torch.Generator
    ) -> list[Tensor]:
        return [fp] * len(drawn)


def weighted(features: Sequence[Tensor], given: Sequence[float]) -> Tensor:
    """sum over groups of lambda_g * f_g; features low to high, each (B, ...)."""
    weights = group_weights(given, len(features))
    return torch.stack([w * f for w, f in zip(weights, features, strict=True)]).sum(0)


def group_weights(given: Sequence[float], groups: int) -> tuple[float, ...]:
    """lambda of each group, low to high: those given, or for another number of groups 0.4 and the rest in equal parts
    (PTMQ §1.7)."""
    if groups == 1:
        return (1.0,)
    return tuple(given) if groups == len(given) else (0.4, *[0.6 / (groups - 1)] * (groups - 1))


def _above_lowest(features: Sequence[Tensor]) -> Tensor:
    """Mean of the groups above the lowest (of the lowest where it is alone)."""
    return torch.stack(list(features[1:] or features)).mean(0)


def _randint(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))
