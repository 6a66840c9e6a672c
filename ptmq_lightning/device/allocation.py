"""Named assignments of widths per layer for what was asked: budgets, searches and measures put together."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ptmq_lightning.allocate.baselines import BASELINES, or_uniform
from ptmq_lightning.allocate.judge import Judge
from ptmq_lightning.allocate.keys import AVERAGES, AllocateKeys
from ptmq_lightning.allocate.measures import MEASURES
from ptmq_lightning.allocate.prices import price_in, read_prices
from ptmq_lightning.allocate.problem import Budget, Choice, Problem
from ptmq_lightning.allocate.rules import budget_of, complete, pairs_of, weight_bits
from ptmq_lightning.allocate.searches import SEARCHES
from ptmq_lightning.allocate.sensitivity import Sensitivity, measure_layers
from ptmq_lightning.allocate.swaps import swap
from ptmq_lightning.allocate.tolerance import HALVINGS, cheapest
from ptmq_lightning.device.pictures import spread
from ptmq_lightning.evaluation.cost import byte_prices, layer_bit_ops, layer_macs
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

log = logging.getLogger(__name__)

MEGA, GIGA = 1e6, 1e9
STEP = 0.5  # of the front, in average weight bits


class Allocation:
    """What a model's layers cost and harm, and the assignments that follow.

    Args:
        model: calibrated; its current selection is the same afterwards.
        images: (N, C, H, W); some of them, evenly spread, for the sensitivity.
        keys: what is asked for.
        labels: of the images (N,), for max_drop; None: unknown.
        seed: of a search that draws.
        progress: called with (layers measured, layers).
    """

    def __init__(
        self,
        model: MultiBitModel,
        images: Tensor,
        keys: AllocateKeys,
        *,
        labels: Tensor | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.images, self.labels, self.keys, self.seed = model, images, labels, keys, seed
        self.progress = progress
        self.pairs = pairs_of(model, keys.activations)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """The harm of every free layer at every pair."""
        return measure_layers(
            MEASURES[self.keys.sensitivity],
            self.model,
            self.images[spread(len(self.images), self.keys.sensitivity_images)],
            self.pairs,
            separately=self.keys.activations == "free",
            progress=self.progress,
        )

    @cached_property
    def judge(self) -> Judge:
        """Of the true harm to the whole network."""
        labels = None if self.labels is None else self.labels[: self.keys.swap_images]
        return Judge(self.model, self.images[: self.keys.swap_images], labels)

    def assignments(self) -> Iterator[tuple[str, BitAssignment]]:
        """A name and an assignment for each wish, in order. Raises ConfigError for one that cannot be fulfilled."""
        for name, budgets in self._wishes():
            yield name, self._made(*budgets)
        if self.keys.max_drop is not None:
            yield f"max_drop_{self.keys.max_drop:g}", complete(self.model, self._within(self.keys.max_drop))

    def front(self) -> Iterator[tuple[str, str, BitAssignment]]:
        """Family (of `front.COSTS`), name and assignment: every half bit between the narrowest and the widest uniform
        weights, and the bit operations of every uniform pair."""
        low, high = (end(pair.w for pair in self.pairs) for end in (min, max))
        for number in range(int((high - low) / STEP) + 1):
            average = low + STEP * number
            yield "size_bytes", f"mixed_{average}", self._made(weight_bits(self.model, self.pairs, average))
        open_ended = self.bit_ops(math.inf)
        for pair in sorted(self.model.pairs):
            spent = open_ended.spent(dict.fromkeys(self.sensitivity, pair))
            name = f"bit_ops_{spent / GIGA:.3g}g"
            yield "bit_ops", name, self._made(replace(open_ended, limit=spent))

    def _wishes(self) -> Iterator[tuple[str, tuple[Budget, ...]]]:
        """Of every kind of budget that is given, each value with each of the others."""
        keys, priced = self.keys, self.keys.price or Path(self.keys.prices or "").stem
        limits: list[list[tuple[str, Budget]]] = [
            [(f"size_{mb:g}mb", self.bytes(mb * MEGA)) for mb in keys.size_mb],
            [(f"bit_ops_{giga:g}g", self.bit_ops(giga * GIGA)) for giga in keys.bit_ops],
            [(f"{priced}_{limit:.10g}", self.table(limit)) for limit in keys.price_limits],
        ]
        alone = not any(limits) and keys.max_drop is None
        averages = keys.averages or (AVERAGES if alone else ())
        limits.insert(0, [(f"mixed_{float(a)}", weight_bits(self.model, self.pairs, a)) for a in averages])
        given = [kind for kind in limits if kind]
        for wish in itertools.product(*given) if given else ():
            yield "_".join(name for name, _ in wish), tuple(budget for _, budget in wish)

    def bytes(self, limit: float) -> Budget:
        """Of the model at one assignment, as `evaluation.cost.size_bytes` counts them."""
        fixed, price = byte_prices(self.model)
        return budget_of(self.model, self.pairs, price, "a size of {:.6g} MB", limit, fixed=fixed, unit=MEGA)

    def bit_ops(self, limit: float) -> Budget:
        """Of an image."""
        macs, layers = layer_macs(self.model, self.images[:1]), self.model.layers

        def price(name: str, pair: BitWidth) -> float:
            return layer_bit_ops(layers[name], macs[name], pair)

        return budget_of(self.model, self.pairs, price, "{:.6g} G bit operations", limit, unit=GIGA)

    def table(self, limit: float) -> Budget:
        """Of the table of prices that the keys name."""
        path = Path(self.keys.prices or "")
        price = price_in(read_prices(path, self.keys.price), self.model, path)
        says = f"a sum of {{:.10g}} {self.keys.price or ''} in '{path}'"
        return budget_of(self.model, self.pairs, price, says.replace("  ", " "), limit, as_listed=True)

    def uniform_sums(self) -> dict[BitWidth, float]:
        """What each pair in all layers costs by that table; without pairs that it has no price for everywhere."""
        budget = self.table(math.inf)
        common = [p for p in sorted(self.pairs) if all(p in prices for prices in budget.prices.values())]
        return {pair: budget.spent(dict.fromkeys(budget.prices, pair)) for pair in common}

    def _made(self, *budgets: Budget) -> BitAssignment:
        """The assignment that the search and then swaps lead to under all of these."""
        return complete(self.model, self._search(Problem(self.sensitivity, budgets), self.keys.swap_seconds))

    def _search(self, problem: Problem, seconds: float) -> Choice:
        """The search's choice or a uniform one, whichever answers better, with swaps for so many seconds."""
        choice = SEARCHES[self.keys.name](problem, self.seed)
        if self.keys.name not in BASELINES:  # which stay what they are, to be compared with
            choice = or_uniform(problem, choice, self._divergence)
        return swap(problem, choice, self._divergence, seconds)

    def _divergence(self, choice: Choice) -> Tensor:
        return self.judge.divergences(complete(self.model, choice))

    def _within(self, most: float) -> Choice:
        """The smallest in bytes that loses no more; its tries share the time for swaps."""
        seconds = self.keys.swap_seconds / (HALVINGS + 1)
        return cheapest(
            self.sensitivity,
            self.bytes(0.0),
            lambda problem: self._search(problem, seconds),
            lambda choice: self.judge.drop(complete(self.model, choice)),
            most,
            self.judge.measures,
        )
