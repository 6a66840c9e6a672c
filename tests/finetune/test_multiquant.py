"""Lowest, random, highest; and labels that follow the wider widths as far as they are right."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from ptmq_lightning.finetune.fit import FinetuneKeys
from ptmq_lightning.finetune.multiquant import MultiQuant, adaptive_label
from ptmq_lightning.runtime.spec import BitWidth
from tests.finetune.networks import PAIRS, images, inserted, labels


def module(pairs: tuple[BitWidth, ...] = PAIRS) -> MultiQuant:
    return MultiQuant(MultiQuant.trainable(inserted(pairs=pairs)), FinetuneKeys(epochs=1), 1)


def test_each_step_trains_the_highest_one_between_and_the_lowest() -> None:
    pairs = tuple(BitWidth(bits, bits) for bits in (2, 3, 4, 6, 8))
    fit = module(pairs)
    drawn = [fit.draw() for _ in range(60)]
    assert {(d[0].w, d[-1].w, len(d)) for d in drawn} == {(8, 2, 3)}
    assert {d[1].w for d in drawn} == {3, 4, 6}


def test_two_widths_are_both_trained_and_one_alone_once() -> None:
    assert [len(module(PAIRS[:count]).draw()) for count in (1, 2)] == [1, 2]


def test_the_adaptive_label_by_hand() -> None:
    wide = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    # true class 0 in both: trust 0.9 and 0.2; label = (1 - p) onehot + p q
    expected = torch.tensor([[0.1 + 0.81, 0.09], [0.8 + 0.04, 0.16]])
    torch.testing.assert_close(adaptive_label(torch.tensor([0, 0]), [wide]), expected)


def test_an_adaptive_label_is_a_distribution_over_the_mean_of_the_wider_widths() -> None:
    one, other = (torch.randn(6, 5, generator=torch.Generator().manual_seed(s)).softmax(1) for s in (0, 1))
    label = adaptive_label(torch.arange(6) % 5, [one, other])
    torch.testing.assert_close(label.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(label, adaptive_label(torch.arange(6) % 5, [(one + other) / 2]))


def test_where_the_wider_widths_are_sure_and_wrong_the_label_is_the_hard_one() -> None:
    wrong = torch.tensor([[0.0, 1.0]])
    assert adaptive_label(torch.tensor([0]), [wrong]).tolist() == [[1.0, 0.0]]


def test_the_losses_of_a_step_by_their_definition() -> None:
    fit = module(PAIRS).eval()
    found, logits = dict(fit.losses(images(), labels())), {}
    for pair in PAIRS:
        fit.network.switch(pair)
        logits[str(pair)] = fit.network(images())
    soft = {name: value.softmax(dim=1) for name, value in logits.items()}
    torch.testing.assert_close(found["w8a8"], cross_entropy(logits["w8a8"], labels()))
    label = adaptive_label(labels(), [soft["w8a8"]])
    torch.testing.assert_close(found["w4a4"], cross_entropy(logits["w4a4"], label))
    label = adaptive_label(labels(), [soft["w8a8"], soft["w4a4"]])
    torch.testing.assert_close(found["w2a4"], cross_entropy(logits["w2a4"], label))
