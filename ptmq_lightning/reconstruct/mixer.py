"""The multi-bit feature mixer: what a block is fed while it is reconstructed (PTMQ §1.7; "matched": §9.1).

A mixer keeps streams of quantized-prefix features. In the paper's cases there is one stream per group, made by running
the finished block on their blend; "matched" keeps one stream per width, so that each width meets its own prefix error.
M is Bernoulli(p), drawn anew in every step, the same for all groups; M = 1 takes the float feature. "float" feeds the
float feature alone and keeps no stream. With one width, "matched" is QDrop's mix and "none" the quantized prefix (§3).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.spec import BitGroups, BitWidth


class Streams(Protocol):
    """Features (B, ...) by stream key."""

    def __getitem__(self, key: Hashable, /) -> Tensor: ...


CASES = ("none", "case1", "case2", "case3", "matched", "float")


@dataclass(frozen=True)
class Mixer:
    """One of the cases. p: share of float features (of the lowest group's in case 2). weights: lambda per group, low
    to high; a number of groups other than theirs takes 0.4 on the lowest and shares the rest."""

    case: str = "case3"
    p: float = 0.5
    weights: tuple[float, ...] = (0.4, 0.3, 0.3)

    def __post_init__(self) -> None:
        if self.case not in CASES:
            raise ConfigError(f"found mixer {self.case!r}; expected one of {', '.join(CASES)}.")
        if abs(sum(self.weights) - 1) > 1e-6:
            raise ConfigError(f"found mixer weights {self.weights} with sum {sum(self.weights):g}; expected sum 1.")

    def group_weights(self, groups: int) -> tuple[float, ...]:
        return group_weights(self.weights, groups)

    def streams(self, groups: BitGroups) -> tuple[Hashable, ...]:
        """Keys of the feature streams that are cached beside the float features."""
        if self.case == "float":
            return ()
        return groups.pairs if self.case == "matched" else tuple(range(len(groups.groups)))

    def propagate(
        self, streams: Streams, groups: BitGroups, run: Callable[[Tensor, BitWidth], Tensor], generator: torch.Generator
    ) -> dict[Hashable, Tensor]:
        """A batch's streams (B, ...) behind a finished block; in the paper's cases each group's width is drawn."""
        if self.case == "float":
            return {}
        if self.case == "matched":
            return {pair: run(streams[pair], pair) for pair in groups.pairs}
        chosen = _randint(len(groups.groups), generator)
        x = self._blend([streams[g] for g in range(len(groups.groups))], chosen)
        return {g: run(x, group[_randint(len(group), generator)]) for g, group in enumerate(groups.groups)}

    def inputs(
        self,
        fp: Tensor,
        streams: Streams,
        drawn: Sequence[BitWidth],
        mask: Callable[[torch.Size], Tensor],
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Input (B, ...) for each drawn width, low to high; fp: the float features (B, ...)."""
        if self.case == "matched":
            m = mask(fp.shape)
            return [torch.lerp(streams[pair], fp, m) for pair in drawn]
        if self.case == "float":
            return [fp] * len(drawn)
        features = [streams[g] for g in range(len(drawn))]
        if self.case == "none":
            mixed = self._blend(features, 0)
        elif self.case == "case2":
            mixed = torch.lerp(_rest(features), features[0], mask(fp.shape))
        else:  # case1 and case3
            mixed = torch.lerp(self._blend(features, _randint(len(features), generator)), fp, mask(fp.shape))
        return [mixed] * len(drawn)

    def _blend(self, features: Sequence[Tensor], chosen: int) -> Tensor:
        """The features of all groups as one tensor, without any float feature and without a mask."""
        if self.case == "case1":
            return features[chosen]
        if self.case == "case2":
            return (features[0] + _rest(features)) / 2
        weights = self.group_weights(len(features))
        return torch.stack([w * f for w, f in zip(weights, features, strict=True)]).sum(0)


def _rest(features: Sequence[Tensor]) -> Tensor:
    """Mean of the groups above the lowest (of the lowest where it is alone)."""
    rest = features[1:] or features
    return torch.stack(list(rest)).mean(0)


def _randint(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def group_weights(given: tuple[float, ...], groups: int) -> tuple[float, ...]:
    """lambda of each group, low to high: those given, or for another number of groups 0.4 and the rest in equal parts
    (PTMQ §1.7)."""
    if groups == 1:
        return (1.0,)
    return given if groups == len(given) else (0.4, *[0.6 / (groups - 1)] * (groups - 1))
