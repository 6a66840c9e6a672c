"""What the widths of the free layers decide for the rest of a model, in widths and in prices.

Pinned layers stay at their pins and are otherwise at the widest pair. A product of activations takes the narrowest
activations of its block. A tensor that several layers read is quantized once, at the width of the layer that owns its
quantizer: the activation width of the others is that one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import fx

from ptmq_lightning.allocate.problem import Budget
from ptmq_lightning.allocate.sensitivity import base_of, free_layers
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.switchable import SwitchableActivation


def pairs_of(model: MultiBitModel, activations: str) -> tuple[BitWidth, ...]:
    """What a free layer may take: the model's own pairs ("tied"), or every combination of their widths ("free")."""
    if activations == "tied":
        return model.pairs
    widths = (sorted({pair[side] for pair in model.pairs}) for side in (0, 1))
    weights, inputs = widths
    return tuple(BitWidth(w, a) for w in weights for a in inputs)


def complete(model: MultiBitModel, chosen: Mapping[str, BitWidth]) -> BitAssignment:
    """The assignment of all layers that a choice for the free ones means."""
    widest = max(model.pairs)
    pairs = base_of(model, model.pairs)
    pairs.update({name: model.layers[name].width(pair) for name, pair in chosen.items()})
    for name, layer in model.layers.items():
        if layer.kind == "matmul":
            block = [pair for other, pair in chosen.items() if model.layers[other].block == layer.block]
            pairs[name] = layer.width(min(block, key=lambda pair: (pair.a, pair.w), default=widest))
    for name, owner in owners(model).items():
        shared = BitWidth(pairs[name].w, pairs[owner].a)
        if model.any_pair or shared in model.pairs:
            pairs[name] = shared
    return BitAssignment(tuple(pairs.items()))


def owners(model: MultiBitModel) -> dict[str, str]:
    """Layers that read a tensor whose quantizer another layer owns, and that layer."""
    found = {}
    for block in model.blocks:
        for node in block.graph.nodes if isinstance(block, fx.GraphModule) else ():
            source = node.args[0] if node.op == "call_module" and node.target in model.layers else None
            if not isinstance(source, fx.Node) or source.op != "call_module":
                continue
            quantizer = block.get_submodule(str(source.target))
            if isinstance(quantizer, SwitchableActivation) and quantizer.owner != node.target:
                found[str(node.target)] = quantizer.owner
    return found


def budget_of(
    model: MultiBitModel,
    pairs: Sequence[BitWidth],
    price: Callable[[str, BitWidth], float | None],
    says: str,
    limit: float,
    *,
    fixed: float = 0.0,
    unit: float = 1.0,
    as_listed: bool = False,
) -> Budget:
    """A budget of what the whole model costs.

    Where a price depends on the choice for another layer, it is that of the widest which this may be: a product of
    activations goes with the first free layer of its block, and a layer whose input another one owns counts at the
    widest activations. So the true price of an assignment is never above its sum.

    Args:
        pairs: that free layers may take.
        price: of any layer at a pair; None: a free layer cannot take it.
        says, limit, unit: as in `Budget`.
        fixed: what the model costs beside its layers.
        as_listed: a layer's price is that of its own pair whoever owns its input.
    """
    free, widest = free_layers(model), max(pair.a for pair in pairs)
    shared = () if as_listed else owners(model)
    first = {model.layers[name].block: name for name in reversed(free)}

    def own(name: str, pair: BitWidth) -> float | None:
        return price(name, BitWidth(pair.w, widest) if name in shared else pair)

    prices = {name: {pair: p for pair in pairs if (p := own(name, pair)) is not None} for name in free}
    for name, layer in model.layers.items():
        leader = first.get(layer.block) if layer.kind == "matmul" else None
        if leader is not None:
            prices[leader] = {pair: p + (price(name, pair) or 0.0) for pair, p in prices[leader].items()}
        elif name not in prices:
            fixed += price(name, max(pairs)) or 0.0
    return Budget(says, prices, limit, fixed, unit)


def weight_bits(model: MultiBitModel, pairs: Sequence[BitWidth], average: float) -> Budget:
    """At most this many bits on average for each weight that is not pinned."""
    counts = {name: model.layers[name].weights for name in free_layers(model)}
    prices = {name: {pair: float(count * pair.w) for pair in pairs} for name, count in counts.items()}
    total = sum(counts.values())
    return Budget("an average of {:g} weight bits", prices, average * total, unit=total)
