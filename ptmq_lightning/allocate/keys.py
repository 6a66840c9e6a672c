"""What is asked of an allocation: the budgets, how they are met, what is measured for it."""

from __future__ import annotations

from dataclasses import dataclass

from ptmq_lightning.allocate.measures import MEASURES
from ptmq_lightning.allocate.searches import SEARCHES
from ptmq_lightning.runtime.keys import key

AVERAGES = (3.0, 4.0, 5.0, 6.0)


@dataclass(frozen=True)
class AllocateKeys:
    name: str = key("none", "the search of widths per layer", choices=lambda: ("none", *sorted(SEARCHES)))
    averages: tuple[float, ...] = key(
        (), "average weight bits, an assignment each: mixed_4.0; empty: 3, 4, 5 and 6 where nothing else is asked for"
    )
    size_mb: tuple[float, ...] = key((), "megabytes (1e6) of the model at the assignment: size_6mb")
    bit_ops: tuple[float, ...] = key((), "1e9 bit operations of an image: bit_ops_0.5g")
    prices: str | None = key(None, "a table of prices for each layer and pair, as a target's compiler gives them")
    price: str | None = key(None, "which column of that table holds the prices, such as cycles; null: the only one")
    price_limits: tuple[float, ...] = key((), "sums of these prices: cycles_20000")
    max_drop: float | None = key(
        None,
        "the smallest assignment that loses at most so many points of agreement (with ptmq allocate and labels: of "
        "top-1): max_drop_1",
        least=0,
        most=100,
    )
    activations: str = key(
        "tied", "of a layer: as in the pairs of bits.groups and bits.extra, or any of their widths",
        choices=("tied", "free"),
    )  # fmt: skip
    sensitivity: str = key(
        "divergence",
        "how a layer's harm is measured: divergence, through the whole network; fisher, by its block's error, faster",
        choices=lambda: tuple(sorted(MEASURES)),
    )
    sensitivity_images: int = key(32, "of the calibration images: what tells layers apart", least=1)
    swap_seconds: float = key(
        0.0, "for each assignment: swaps of two layers, by the true divergence of the network", least=0
    )
    swap_images: int = key(
        256, "of the calibration images: for swaps, max_drop and the comparison with uniform widths", least=1
    )
