"""DoReFa's formula by hand, the stored code, and who teaches whom."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from ptmq_lightning.finetune.any_precision import AnyPrecision, DorefaWeight
from ptmq_lightning.finetune.fit import FinetuneKeys
from ptmq_lightning.finetune.network import SharedModel
from ptmq_lightning.models import blocks, graph
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.finetune.networks import PAIRS, images, inserted, labels
from tests.networks import small_network

WIDTHS = tuple(range(2, 9))


def dorefa(values: torch.Tensor) -> DorefaWeight:
    steps = torch.ones(len(WIDTHS), len(values))
    weight = DorefaWeight(
        MultiBitWeight(torch.ones_like(values, dtype=torch.int16), torch.ones(len(values)), WIDTHS, steps)
    )
    weight.value.data = values
    return weight


def test_weights_are_dorefas_by_hand() -> None:
    values = torch.tensor([[-0.8, 0.1, 0.5, 0.3]])
    unit = [math.tanh(v) / (2 * math.tanh(0.8)) + 0.5 for v in (-0.8, 0.1, 0.5, 0.3)]  # 0, 0.575, 0.848, 0.719
    size = (0.8 + 0.1 + 0.5 + 0.3) / 4
    for bits, levels in ((2, 3), (4, 15)):  # of which 255 is a multiple: as if rounded at once
        expected = [(2 * round(levels * u) / levels - 1) * size for u in unit]
        torch.testing.assert_close(dorefa(values).at(bits), torch.tensor([expected]))


def test_a_narrow_level_is_rounded_from_the_stored_code() -> None:
    values = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    weight = dorefa(values)
    code = torch.round(weight.unit() * 255)
    size = values.abs().mean()
    for bits in WIDTHS:
        top = 2**bits - 1
        torch.testing.assert_close(weight.at(bits), (2 * torch.round(code / 255 * top) / top - 1) * size)


def test_what_is_stored_gives_every_trained_width_bitwise() -> None:
    weight = dorefa(torch.randn(8, 50, generator=torch.Generator().manual_seed(0)))
    stored = weight.committed()
    assert stored.code.dtype == torch.uint8
    assert all(torch.equal(stored.at(bits), weight.at(bits)) for bits in WIDTHS)


def test_a_weight_of_zeros_stays_finite() -> None:
    assert bool(dorefa(torch.zeros(2, 3)).at(4).isfinite().all())


def test_the_gradient_passes_the_rounding_as_if_it_were_not_there() -> None:
    gradients = []
    for bits in (3, None):
        weight = dorefa(torch.tensor([[-0.8, 0.1, 0.5, 0.3]]))
        (weight.at(bits) * torch.tensor([[1.0, 2.0, -1.0, 0.5]])).sum().backward()
        gradients.append(weight.value.grad)
    torch.testing.assert_close(*gradients)


def test_the_widest_learns_the_label_and_each_other_the_next_wider_one() -> None:
    module = AnyPrecision(AnyPrecision.trainable(inserted()), FinetuneKeys(epochs=1), 1).eval()
    assert isinstance(module.network, SharedModel)
    found = dict(module.losses(images(), labels()))
    logits = {}
    for pair in PAIRS:
        module.network.switch(pair)
        logits[str(pair)] = module.network(images())
    assert list(found) == ["w8a8", "w4a4", "w2a4"]
    torch.testing.assert_close(found["w8a8"], cross_entropy(logits["w8a8"], labels()))
    for narrow, wide in (("w4a4", "w8a8"), ("w2a4", "w4a4")):
        expected = cross_entropy(logits[narrow], logits[wide].softmax(dim=1))
        torch.testing.assert_close(found[narrow], expected)


def test_the_teacher_gets_no_gradient_from_its_pupil() -> None:
    module = AnyPrecision(AnyPrecision.trainable(inserted()), FinetuneKeys(epochs=1), 1)
    passes = module.losses(images(), labels())
    next(passes)[1].backward()
    wide = {
        n: p.grad.clone() for n, p in module.network.named_parameters() if n.endswith("scale") and p.grad is not None
    }
    next(passes)[1].backward()
    for name, gradient in wide.items():
        grad = module.network.get_parameter(name).grad
        assert grad is not None and torch.equal(grad[2], gradient[2])  # the set of w8a8


def test_layers_without_a_norm_are_refused() -> None:
    gm = graph.trace(small_network(), (3, 8, 8))
    model = insert(blocks.cut(gm, torch.randn(2, 3, 8, 8)), PAIRS, Placement(), StepSize())
    with pytest.raises(ModelError) as caught:
        AnyPrecision.trainable(model)
    assert str(caught.value) == (
        "method=any_precision needs a BatchNorm behind every layer, because DoReFa changes the weights' scale; 2 "
        "layers have none, first blocks.0.qkv. Choose a network with BatchNorms or another method."
    )
