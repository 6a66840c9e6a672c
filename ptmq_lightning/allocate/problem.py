"""What a search of widths per layer solves: a multiple-choice knapsack over additive harm.

Each free layer takes one of its pairs. The sum of the layers' harm is to be least, and under every budget the sum of
their prices at most a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ptmq_lightning.allocate.sensitivity import Sensitivity
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.registry import Registry
from ptmq_lightning.runtime.spec import BitWidth

Choice = dict[str, BitWidth]  # of each free layer
Prices = Mapping[str, Mapping[BitWidth, float]]  # layer -> pair -> what it costs


@dataclass(frozen=True)
class Budget:
    """A limit on the sum of prices.

    Args:
        says: the limit in words, such as "an average of {:g} weight bits".
        prices: of the free layers at every pair that they may take.
        limit: of the whole sum.
        fixed: the part of that sum which no choice changes.
        unit: what is one in ``says``.
    """

    says: str
    prices: Prices
    limit: float
    fixed: float = 0.0
    unit: float = 1.0

    def spent(self, choice: Mapping[str, BitWidth]) -> float:
        """The whole sum of prices."""
        return self.fixed + sum(self.prices[name][pair] for name, pair in choice.items())

    def ends(self) -> tuple[float, float]:
        """The least and the largest sum that there can be."""
        of_layers = self.prices.values()
        return self.fixed + sum(min(p.values()) for p in of_layers), self.fixed + sum(
            max(p.values()) for p in of_layers
        )

    def in_words(self, amount: float) -> str:
        return self.says.format(amount / self.unit)


@dataclass(frozen=True)
class Option:
    """A pair that a layer may take. price: its share of every budget, added up."""

    pair: BitWidth
    harm: float
    prices: tuple[float, ...]
    price: float


@dataclass(frozen=True)
class Problem:
    """Free layers, what each of their pairs harms, and what may be spent. A pair that a budget has no price for cannot
    be taken.

    Raises:
        ConfigError: a budget that even the cheapest pairs exceed, or a layer for which no pair is left.
    """

    harm: Sensitivity
    budgets: tuple[Budget, ...]
    ladders: Mapping[str, Sequence[Option]] = field(init=False)

    def __post_init__(self) -> None:
        harm = {
            n: {p: h for p, h in of.items() if all(p in b.prices[n] for b in self.budgets)}
            for n, of in self.harm.items()
        }
        object.__setattr__(self, "harm", harm)  # frozen for everybody else
        if empty := [name for name, of in harm.items() if not of]:
            raise ConfigError(
                f"found no price for any pair of layer {empty[0]!r}; expected one for a pair of the model"
            )
        for budget in self.budgets:
            least, _ = budget.ends()
            if least > budget.limit:
                raise ConfigError(
                    f"{budget.in_words(budget.limit)} is below the narrowest possible, {least / budget.unit:g}; ask "
                    "for more"
                )
        object.__setattr__(self, "ladders", {name: self._ladder(name) for name in harm})

    def _ladder(self, name: str) -> list[Option]:
        """The pairs of a layer that are worth their price, cheap to dear: each harms at most as much as every cheaper
        one. Where several cost the same, the widest of those that harm least."""
        options: list[Option] = []
        for pair, harm in self.harm[name].items():
            prices = tuple(budget.prices[name][pair] for budget in self.budgets)
            shares = (p / (b.limit - b.fixed or 1.0) for p, b in zip(prices, self.budgets, strict=True))
            options.append(Option(pair, harm, prices, sum(shares)))
        kept: list[Option] = []
        for option in sorted(options, key=lambda o: (o.price, -o.harm, o.pair)):
            if kept and option.harm > kept[-1].harm:
                continue
            if kept and option.price == kept[-1].price:
                kept.pop()
            kept.append(option)
        return kept

    def total(self, choice: Mapping[str, BitWidth]) -> float:
        """The harm of all layers together."""
        return sum(self.harm[name][pair] for name, pair in choice.items())

    def fits(self, choice: Mapping[str, BitWidth]) -> bool:
        """Whether every budget is kept."""
        return all(budget.spent(choice) <= budget.limit for budget in self.budgets)


# (problem, seed) -> Choice
SEARCHES: Registry[Callable[[Problem, int], Choice]] = Registry("search")


def impossible(problem: Problem) -> ConfigError:
    """What to raise where no choice keeps all budgets."""
    asked = " and ".join(budget.in_words(budget.limit) for budget in problem.budgets)
    return ConfigError(f"found no pairs of the {len(problem.harm)} layers for {asked} together; ask for more")
