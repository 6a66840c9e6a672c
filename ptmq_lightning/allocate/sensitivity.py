"""How much one layer's width hurts the network's answer (PTMQ §5).

Omega_l(w, a) = mean over images of KL(softmax f_FP || softmax f_l), where f_l runs layer l at (w, a) and every other
layer at the model's widest pair (the deploy-side variant). Made non-increasing in the width: noise may not make a
wider layer look worse. `divergence` measures it as it is written, through the rest of the network each time; the
quicker `fisher` (allocate.fisher) asks the layer's block alone. B batch, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough
from ptmq_lightning.runtime.registry import Registry
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

log = logging.getLogger(__name__)

Sensitivity = dict[str, dict[BitWidth, float]]

# (model, images, pairs, batch=, progress=) -> Sensitivity
MEASURES: Registry[Callable[..., Sensitivity]] = Registry("sensitivity")


@MEASURES.register("divergence")
@torch.inference_mode()
def layer_sensitivity(
    model: MultiBitModel,
    images: Tensor,
    pairs: Sequence[BitWidth],
    *,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Omega of every free weight layer at every pair; layers of pinned weights and matmuls have none.

    Args:
        model: calibrated; its current selection is the same afterwards.
        images: (N, 3, H, W).
        pairs: the pairs to measure; the widest is what the other layers run at.
        batch: images at a time.
        progress: called with (layers done, layers).
    """
    base, free = base_of(model, pairs), free_layers(model)
    log.info("sensitivity of %d layers at %d pairs, the other layers at %s", len(free), len(pairs), max(pairs))
    features = list(images.split(batch))  # the input of the block at hand, (B, ...) each
    with passthrough(model):
        fp = [log_softmax(model(x), dim=1) for x in features]  # (B, C) each
    with at_bits(model, BitAssignment(tuple(base.items()))):
        at_base = mean_kl(fp, [log_softmax(model(x), dim=1) for x in features])  # the widest pair's, of every layer

    def divergence(name: str, pair: BitWidth) -> float:
        with at_bits(model, BitAssignment(tuple({**base, name: model.layers[name].width(pair)}.items()))):
            tail = model.blocks[model.layers[name].block :]
            return mean_kl(fp, [log_softmax(_through(tail, x), dim=1) for x in features])

    result: Sensitivity = {}
    for index, block in enumerate(model.blocks):
        for name in (name for name in free if model.layers[name].block == index):
            measured = {pair: at_base if pair == max(pairs) else divergence(name, pair) for pair in pairs}
            result[name] = non_increasing(measured)
            if progress is not None:
                progress(len(result), len(free))
        with at_bits(model, BitAssignment(tuple(base.items()))):
            features = [block(x) for x in features]
    return result


def base_of(model: MultiBitModel, pairs: Sequence[BitWidth]) -> dict[str, BitWidth]:
    """What every layer runs at but the one that is measured: the widest of the pairs."""
    widest = max(pairs)
    return dict(BitAssignment.uniform(widest.w, widest.a, model).items())


def free_layers(model: MultiBitModel) -> list[str]:
    """The weight layers whose width is free."""
    return [name for name, info in model.layers.items() if info.weight_shape is not None and info.pin_w is None]


def _through(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def mean_kl(reference: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Mean over images of KL(reference || other); both are log-probabilities (B, C) in batches."""
    total = sum(
        float(kl_div(q.double(), p.double(), log_target=True, reduction="sum"))
        for p, q in zip(reference, other, strict=True)
    )
    return total / sum(len(p) for p in reference)


def non_increasing(measured: Mapping[BitWidth, float]) -> dict[BitWidth, float]:
    """Each pair's figure raised to that of the worst pair that is at least as wide in both parts."""
    return {
        pair: max(value for other, value in measured.items() if other.w >= pair.w and other.a >= pair.a)
        for pair in measured
    }
