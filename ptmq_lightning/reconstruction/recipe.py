"""Everything one pass over the network is made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ptmq_lightning.quant.roundings import RoundingKeys
from ptmq_lightning.reconstruction.mixer import Mixer
from ptmq_lightning.reconstruction.objective import Objective
from ptmq_lightning.reconstruction.units import UNITS
from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.model import LayerInfo
from ptmq_lightning.runtime.spec import BitGroups

CORRECTIONS = ("none", "after", "during")
TRAVEL = 5.0  # h(V) is 0 at V = -2.4 and 1 at 2.4; Adam moves V by at most about its rate in an iteration
FASTEST = 0.1


@dataclass(frozen=True)
class Schedule:
    """How long a unit is fitted, and at which rates (PTMQ §1.5, §1.12). Rates of step sizes are of their logarithms."""

    iters: int = key(500, "iterations per unit", least=1)
    activation_iters: int | None = key(
        None, "of the second phase of method.activation, per unit; null: a quarter of iters", least=1
    )
    batch: int = key(32, "images per iteration", least=1)
    lr_rounding: float | None = key(
        None, f"rate of the rounding, constant; null: {TRAVEL:g} / iters, at most {FASTEST:g}", least=0
    )
    lr_activation: float = key(1e-3, "rate of the activations' step sizes, on a cosine to 0", least=0)
    lr_weight_step_size: float = key(1e-3, "rate of the weights' step sizes, on a cosine to 0", least=0)
    lambda_rounding: float = key(0.01, "weight of the rounding's regularizer", least=0)
    warmup: float = key(0.2, "share of the iterations without the regularizer", least=0, most=1)
    beta_start: float = key(20.0, "exponent of the regularizer when it sets in")
    beta_end: float = key(2.0, "exponent of the regularizer at the end")
    log_every: int = key(50, "iterations from one line of metrics to the next", least=1)
    patience: int | None = key(
        None,
        "a unit's fit ends early where its rounding is decided and its error on held-out images has not fallen for so "
        "many lines of metrics; null: never",
        least=1,
    )

    def rounding_rate(self, share: float = 1.0) -> float:
        """Of a rounding that is drawn in a share of the iterations: lr_rounding, or the rate at which it can travel as
        far in a short fit as in a long one; the less it is drawn the higher, so that it settles, too."""
        rate = min(TRAVEL / self.iters, FASTEST) if self.lr_rounding is None else self.lr_rounding
        return min(rate / share, max(rate, FASTEST)) if share else 0.0


@dataclass(frozen=True)
class MethodKeys:
    """What makes a method: what one fit is about, and what is quantized and learned in it."""

    unit: str = key("block", "what one fit is about: a block, or a layer with its activation", choices=UNITS.names)
    quantize: str = key("all", "while rounding is learned, in the unit and before it", choices=("all", "weights"))
    activation: str = key(
        "joint",
        "the activations' step sizes: learned with the rounding, as calibrated, or learned alone after it",
        choices=("joint", "fixed", "second_phase"),
    )
    drop: float = key(0.5, "share of activations that pass unquantized inside the unit", least=0, most=1)
    bias_correction: str = key(
        "none",
        "take the rounding's mean error off each bias, for every weight width: after the fit, or during it too",
        choices=CORRECTIONS,
    )


@dataclass(frozen=True)
class Recipe:
    """What one pass is made of.

    Attributes:
        groups: of widths; one of each is drawn in every iteration.
        unit: a name of `UNITS`.
        quantize_inputs: False fits on quantized weights alone, in the unit and before it; activations stay in float.
        learn_inputs: False keeps the activations' step sizes as they were calibrated.
        bias_correction: of `CORRECTIONS`: of every block, once it is committed; during: in the fit too.
        drop: share of elements that activation quantizers pass unquantized (PTMQ §1.9).
        seed: of all draws.
    """

    groups: BitGroups
    mixer: Mixer
    objective: Objective
    rounding: RoundingKeys
    schedule: Schedule
    learn_step_sizes: bool = False
    unit: str = "block"
    quantize_inputs: bool = True
    learn_inputs: bool = True
    bias_correction: str = "none"
    drop: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _ = UNITS[self.unit]  # refuses an unknown one

    def count(self, layers: Iterable[LayerInfo]) -> int:
        """Units among the layers of a number of blocks."""
        return UNITS[self.unit].count(list(layers))
