"""The quick measure is the divergence to the second order, and asks a layer's own block alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ptmq_lightning.allocate.fisher import Fisher, fisher_score
from ptmq_lightning.allocate.measures import MEASURES
from ptmq_lightning.allocate.sensitivity import base_of, measure_layers, non_increasing
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.spec import BitWidth
from tests.networks import images, small_model

IMAGES = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0))


def test_the_scores_gradient_has_fishers_information_on_average() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]]).expand(20000, -1).clone().requires_grad_(True)
    (g,) = torch.autograd.grad(fisher_score(logits, torch.Generator().manual_seed(0)), logits)
    p = logits[0].detach().softmax(0)
    # an entry's standard error is 1/sqrt(20000) = .007 of at most .25
    torch.testing.assert_close(g.T @ g / len(g), p.diag() - p.outer(p), atol=5e-3, rtol=0)


def test_a_layers_harm_is_the_second_order_of_the_divergence_that_it_alone_causes(model: Any) -> None:
    quick = measure_layers(Fisher, model, IMAGES, model.pairs)
    p = IMAGES.softmax(1)[:, 0]
    for name, fault in (("a", 1.0), ("b", 0.1), ("c", 3.0)):
        change = fault * (2.0**-3 - 2.0**-8)  # of the first logit, against the layer at 8 bits
        expected = 0.5 * float((p * (1 - p)).mean()) * change**2
        # one draw an image: a standard error of about sqrt(2 / 4000)
        assert quick[name][BitWidth(3, 3)] == pytest.approx(expected, rel=0.1)


def test_layers_are_told_apart_as_by_the_divergence(model: Any) -> None:
    quick, full = (measure_layers(MEASURES[name], model, IMAGES, model.pairs) for name in ("fisher", "divergence"))
    assert list(quick) == list(full) == ["a", "b", "c"]
    for pair in model.pairs[:-1]:
        assert sorted(quick, key=lambda n: quick[n][pair]) == sorted(full, key=lambda n: full[n][pair])


def test_the_widest_pair_does_no_harm_and_no_pair_less_than_a_wider_one(model: Any) -> None:
    for harm in measure_layers(Fisher, model, IMAGES, model.pairs).values():
        assert harm[max(harm)] == 0 and harm == non_increasing(harm)


def test_the_batch_of_a_measure_makes_no_difference_but_for_the_draws(model: Any) -> None:
    whole, parts = (measure_layers(Fisher, model, IMAGES, model.pairs, batch=batch) for batch in (4000, 512))
    for name in whole:
        assert parts[name][BitWidth(2, 2)] == pytest.approx(whole[name][BitWidth(2, 2)], rel=0.1)


@pytest.mark.parametrize("in_place", [False, True])
def test_from_the_layer_on_a_block_computes_what_the_whole_block_does(in_place: bool) -> None:
    network, x = small_model().run_in_place(in_place), images(6)
    measure = Fisher(network, x, base_of(network, network.pairs), batch=4)
    for index in range(len(network.blocks)):
        measure.start(index)
        for name, info in network.layers.items():
            if info.block == index and info.weight_shape is not None:
                width = info.width(BitWidth(3, 3))
                with measure.changed({name: width}), torch.inference_mode():
                    expected = [network.blocks[index](part) for part in measure.inputs[index]]
                for _ in range(2):  # the first run leaves what the second one starts from as it was
                    assert all(map(torch.equal, measure._run(name, width), expected)), name
                assert len(measure.behind[name]) <= len(network.blocks[index].graph.nodes) - 1


def test_the_selection_is_the_same_afterwards_and_every_layer_is_told(model: Any) -> None:
    model.switch(3)
    before, told = model.active, []
    measure_layers(Fisher, model, IMAGES, model.pairs, progress=lambda done, layers: told.append((done, layers)))
    assert model.active == before and told == [(1, 3), (2, 3), (3, 3)]


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        _ = MEASURES["hessian"]
    assert all(name in str(error.value) for name in ("hessian", "fisher", "divergence"))
