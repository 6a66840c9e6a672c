"""Widths per layer under an average of weight bits, by a greedy walk down (PTMQ §5)."""

from __future__ import annotations

from collections.abc import Mapping

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth


def greedy(
    model: MultiBitModel, sensitivity: Mapping[str, Mapping[BitWidth, float]], average_bits: float
) -> BitAssignment:
    """The assignment whose weights have at most ``average_bits`` bits on average, counted per weight.

    All free layers start at their widest pair; the one with the least harm per bit saved goes down one width until the
    average fits, then whatever still fits goes up again, the largest relief first. Pinned layers stay and do not count.
    Activations follow the pair of their layer's weight width; a matmul takes the narrowest activations of its block.

    Args:
        model: the model whose layers are to be assigned.
        sensitivity: free weight layer -> pair -> harm (``allocate.sensitivity``).
        average_bits: the budget, at least the narrowest width.

    Raises:
        ConfigError: the budget lies below the narrowest width of every layer.
    """
    ladders = {name: _ladder(harm) for name, harm in sensitivity.items()}
    counts = {name: model.layers[name].weights for name in ladders}
    chosen = {name: len(ladder) - 1 for name, ladder in ladders.items()}
    budget = average_bits * sum(counts.values())

    def bits(rung: Mapping[str, int]) -> int:
        return sum(counts[name] * ladders[name][rung[name]].w for name in ladders)

    def harm_per_bit(name: str, low: int) -> float:
        below, above = ladders[name][low], ladders[name][low + 1]
        return (sensitivity[name][below] - sensitivity[name][above]) / (counts[name] * (above.w - below.w))

    if bits(dict.fromkeys(chosen, 0)) > budget:
        lowest = bits(dict.fromkeys(chosen, 0)) / sum(counts.values())
        raise ConfigError(
            f"an average of {average_bits:g} weight bits is below the narrowest possible, {lowest:g}; ask for more"
        )
    while bits(chosen) > budget:
        name = min((n for n in chosen if chosen[n] > 0), key=lambda n: harm_per_bit(n, chosen[n] - 1))
        chosen[name] -= 1
    while fitting := [
        n for n in chosen if chosen[n] + 1 < len(ladders[n]) and bits({**chosen, n: chosen[n] + 1}) <= budget
    ]:
        chosen[max(fitting, key=lambda n: harm_per_bit(n, chosen[n]))] += 1
    return _complete(model, {name: ladders[name][rung] for name, rung in chosen.items()})


def _ladder(harm: Mapping[BitWidth, float]) -> list[BitWidth]:
    """One pair per weight width, low to high: where two share it, the one with more activation bits."""
    return sorted({pair.w: pair for pair in sorted(harm)}.values())


def _complete(model: MultiBitModel, chosen: Mapping[str, BitWidth]) -> BitAssignment:
    """Add the rest: pinned layers at the widest pair, matmuls at their block's narrowest activations."""
    widest = max(model.pairs)
    pairs = dict(BitAssignment.uniform(widest.w, widest.a, model).items())
    pairs.update({name: model.layers[name].width(pair) for name, pair in chosen.items()})
    for name, layer in model.layers.items():
        if layer.kind == "matmul":
            block = [pair for other, pair in chosen.items() if model.layers[other].block == layer.block]
            pairs[name] = layer.width(min(block, key=lambda pair: (pair.a, pair.w), default=widest))
    return BitAssignment(tuple(pairs.items()))
