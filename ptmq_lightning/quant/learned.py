"""What every way to learn a rounding has in common, and their registry.

A rounding is a `LearnedWeight`: it stands in the place of a layer's committed weight while a unit is fitted, and turns
back into one at the end. `quant.roundings` holds those that ship; one from outside joins by `@ROUNDINGS.register`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ptmq_lightning.quant.together import Soft
from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.registry import Registry
from ptmq_lightning.runtime.spec import MAX_BITS, MIN_BITS
from ptmq_lightning.runtime.switchable import SwitchableWeight
from ptmq_lightning.runtime.weights import MultiBitWeight

ROUNDINGS: Registry[type[LearnedWeight]] = Registry("rounding")


@dataclass(frozen=True)
class RoundingKeys:
    """What is learned about rounding, and from where it starts."""

    name: str = key("shared", "what is learned about rounding", choices=ROUNDINGS.names)
    planes: list[list[int]] = key(
        factory=list, help="per_group: sets of weight widths that share a rounding; others: nearest"
    )
    tolerance: float | None = key(
        None,
        "per_group: a width in no plane gets one of its own in the layers where nearest rounding's error is above this "
        "share of the weight's power; null: in none",
        least=0,
    )
    init_width: int = key(4, "width whose fractions the rounding starts from", least=MIN_BITS, most=MAX_BITS)
    rate: float = key(1.0, "factor on recon.lr_rounding")

    def __post_init__(self) -> None:
        ROUNDINGS[self.name].check(self)


class LearnedWeight(SwitchableWeight):
    """A trainable stand-in for a MultiBitWeight (O, ...).

    Args:
        frozen: the weight that it stands for; its integers stay as they are.
        keys: how the rounding is learned.
        learn_step_sizes: whether the logarithms of the step sizes are parameters too.
    """

    learns: ClassVar[bool] = True  # False: the committed weight stays in its place
    averaged: ClassVar[bool] = False  # the regularizer is the mean, not the sum, over the variables of a weight

    def __init__(self, frozen: MultiBitWeight, keys: RoundingKeys, *, learn_step_sizes: bool) -> None:
        super().__init__(frozen.widths)
        self._frozen = [frozen]  # in a list, so that it is no submodule: its tensors are no parameters of the fit
        self.keys = keys
        learned = frozen.widths if learn_step_sizes else ()
        self.log_gain = nn.ParameterDict(
            {str(bits): nn.Parameter(torch.zeros_like(frozen.latent_step)) for bits in learned}
        )
        self.rows: dict[int, Tensor] = dict(zip(frozen.widths, frozen.steps, strict=True))  # frozen step sizes (O,)
        # While `quant.together` has them at hand: step sizes, and soft roundings, by width.
        self.now: dict[int, Tensor] = {}
        self.soft: dict[int, Soft] = {}

    @classmethod
    def check(cls, keys: RoundingKeys) -> None:
        """Raises ConfigError for keys that this rounding cannot work with."""

    @property
    def frozen(self) -> MultiBitWeight:
        return self._frozen[0]

    def at(self, bits: None) -> Tensor:
        """The float network's weight (O, ...)."""
        return self.frozen.at(bits)

    def step_size(self, bits: int) -> Tensor:
        """s_b (O,), learned or frozen."""
        if bits in self.now:
            return self.now[bits]
        step = self.rows[bits]
        return step * self.log_gain[str(bits)].exp() if str(bits) in self.log_gain else step

    def step_sizes(self) -> Tensor:
        """s (K, O) of all widths."""
        return torch.stack([self.step_size(bits) for bits in self.frozen.widths])

    @abstractmethod
    def learned(self) -> list[nn.Parameter]:
        """The parameters of the rounding."""

    def read_by(self) -> list[list[int]]:
        """The weight widths that read each of the parameters of the rounding."""
        return [list(self.frozen.widths) for _ in self.learned()]

    def variables(self, widths: Iterable[int]) -> dict[int, Tensor]:
        """V (O, ...) of those of these widths that are rounded softly, which the regularizer pulls to the ends of h;
        one tensor where they share it. None where nothing is soft."""
        return {}

    def undecided(self, widths: set[int]) -> list[Tensor]:
        """The soft roundings h that these widths read, which end at 0 or 1; none where nothing is soft."""
        return []

    @abstractmethod
    def committed(self) -> MultiBitWeight:
        """The runtime weight with what was learned."""

    def with_step_sizes(self) -> MultiBitWeight:
        """The runtime weight with the learned step sizes, the same integers, and nothing said about their rounding."""
        frozen = self.frozen
        shared = frozen.latent, frozen.latent_step, frozen.widths
        weight = MultiBitWeight(*shared, self.step_sizes(), frozen.ratios, frozen.zero_points)
        weight.select(self.bits)
        return weight


@ROUNDINGS.register("nearest")
class Nearest(LearnedWeight):
    """Nothing is learned: weights stay rounded to nearest, or as an earlier pass committed them."""

    learns = False

    def learned(self) -> list[nn.Parameter]:
        return []

    def committed(self) -> MultiBitWeight:
        return self.frozen


def nearest_width(wanted: int, widths: Sequence[int]) -> int:
    """The width that is nearest to the wanted one, the narrower of two."""
    return min(widths, key=lambda bits: (abs(bits - wanted), bits))
