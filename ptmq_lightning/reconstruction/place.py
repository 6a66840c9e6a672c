"""Which unit of a run is fitted, and which iteration of the run this is: answered here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Place:
    """A unit's place in a run, which may go over the network more than once.

    Attributes:
        index: of the unit, over all passes.
        count: units up to the end of this pass.
        name: of the block, or of the layer that is fitted alone.
        offset: iterations of all units before it.
        block: index of its block in the network.
        seed: of the run.
    """

    index: int
    count: int
    name: str
    offset: int
    block: int = 0
    seed: int = 0

    def iteration(self, index: int) -> int:
        """Iteration `index` of this unit, counted over the run."""
        return self.offset + index

    def at(self, block: int, name: str) -> Place:
        """The same place, of a unit with this name in this block."""
        return replace(self, block=block, name=name)

    def after(self, units: int, iters: int) -> Place:
        """The place behind some units of so many iterations each."""
        return replace(self, index=self.index + units, offset=self.offset + units * iters)

    def seed_of(self, index: int) -> int:
        """A seed that runs of other seeds do not share."""
        return self.seed * 1_000_003 + index

    @property
    def unit_seed(self) -> int:
        return self.seed_of(self.index)

    def generator(self, index: int | None = None) -> torch.Generator:
        """A generator of the unit's own, or of number `index`: a resumed run makes the same draws."""
        return torch.Generator().manual_seed(self.unit_seed if index is None else self.seed_of(index))
