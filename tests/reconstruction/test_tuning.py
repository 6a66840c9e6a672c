"""The last pass lowers the logit error of every width, keeps every integer, and is undone where it does harm."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ptmq_lightning.reconstruction.features import map_batches
from ptmq_lightning.reconstruction.place import Place
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.tuning import ENOUGH, TuneKeys, Tuning, errors, output_scales, tune
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough, quantizers_of, weights_of
from ptmq_lightning.runtime.spec import BitGroups
from tests.networks import GROUPS, RECIPE, images, small_model, trainer

PLACE = Place(7, 8, "whole network", 56)
KEYS = TuneKeys(20, rate=0.05)


def tuned(model: MultiBitModel, keys: TuneKeys = KEYS, recipe: Recipe = RECIPE, free: int | None = None) -> bool:
    return tune(model, images(), recipe, keys, trainer, PLACE, free)


def logits_of(model: MultiBitModel) -> Tensor:
    with passthrough(model):
        return map_batches(model, images(), 16)


def tensors(model: MultiBitModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.named_buffers()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_error_falls_at_every_width_and_no_integer_changes() -> None:
    model = small_model()
    logits, weights = logits_of(model), [weight for block in model.blocks for _, weight in weights_of(block)]
    codes = [{bits: weight.code(bits) for bits in weight.widths} for weight in weights]
    before = errors(model, RECIPE, images(), logits)
    assert tuned(model)
    after = errors(model, RECIPE, images(), logits)
    assert all(after[pair] < before[pair] for pair in before), (before, after)
    assert after[GROUPS.pairs[0]] < 0.8 * before[GROUPS.pairs[0]]
    now = [weight for block in model.blocks for _, weight in weights_of(block)]
    for weight, own in zip(now, codes, strict=True):
        assert all(torch.equal(weight.code(bits), code) for bits, code in own.items())
    assert torch.equal(logits_of(model), logits)  # the float network is what it was
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "log_" in name)


def test_a_width_that_is_not_drawn_keeps_its_steps_and_biases() -> None:
    model, narrow = small_model(), replace(RECIPE, groups=BitGroups.of([[3], [4]]))
    layer = model.blocks[1].get_submodule(next(weights_of(model.blocks[1]))[0])
    before = layer.weight.steps.clone()
    assert tuned(model, recipe=narrow)
    layer = model.blocks[1].get_submodule(next(weights_of(model.blocks[1]))[0])
    moved = [not torch.equal(a, b) for a, b in zip(before, layer.weight.steps, strict=True)]
    assert dict(zip(layer.weight.widths, moved, strict=True)) == {3: True, 4: True, 5: False, 6: False, 8: False}
    shifted = [bool((row != (0 if layer.bias is None else layer.bias)).any()) for row in layer.biases]
    assert shifted == moved


def test_what_the_reconstruction_does_not_learn_stays() -> None:
    model = small_model()
    steps = [weight.steps.clone() for block in model.blocks for _, weight in weights_of(block)]
    inputs = [quantizer.steps.clone() for block in model.blocks for _, quantizer in quantizers_of(block)]
    assert tuned(model, recipe=replace(RECIPE, learn_step_sizes=False, learn_inputs=False))
    assert all(torch.equal(a, w.steps) for a, (_, w) in zip(steps, _all(model, weights_of), strict=True))
    assert all(torch.equal(a, q.steps) for a, (_, q) in zip(inputs, _all(model, quantizers_of), strict=True))


def _all(model: MultiBitModel, what: object) -> list[tuple[str, object]]:
    return [found for block in model.blocks for found in what(block)]  # type: ignore[operator]


def test_a_pass_that_held_out_images_are_worse_for_is_undone() -> None:
    model = small_model()
    before = tensors(model)
    assert not tuned(model, TuneKeys(20, rate=3.0))
    assert same(before, tensors(model))


def test_blocks_run_again_where_memory_is_short_give_the_same_tensors() -> None:
    plain, thrifty = small_model(), small_model()
    assert tuned(plain, free=2**40)
    assert tuned(thrifty, free=1)
    assert same(tensors(plain), tensors(thrifty))


def test_the_same_seed_gives_the_same_tensors_and_another_one_others() -> None:
    models = [small_model() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        assert tune(model, images(), RECIPE, KEYS, trainer, replace(PLACE, seed=seed))
    assert same(tensors(models[0]), tensors(models[1]))
    assert not same(tensors(models[0]), tensors(models[2]))


def test_rates_are_in_levels_of_each_width() -> None:
    module = module_of(small_model())
    groups = module.configure_optimizers()["optimizer"].param_groups
    rates = {round(0.05 / group["initial_lr"]): len(group["params"]) for group in groups}
    assert rates.keys() == {2 ** (bits - 1) for bits in (3, 4, 5, 6, 8)}
    assert all(rates.values())


def module_of(model: MultiBitModel) -> Tuning:
    before = errors(model, RECIPE, images(), logits_of(model))
    return Tuning(model, RECIPE, KEYS, PLACE, before, output_scales(model, images()))


def test_a_pair_of_each_group_is_drawn_in_turn() -> None:
    module = module_of(small_model())
    drawn = [module.draw(index) for index in range(60)]
    assert all(pair in GROUPS.groups[index % 3] for index, pair in enumerate(drawn))
    assert set(drawn) == set(GROUPS.pairs)


def test_what_a_pass_keeps_grows_with_the_images_and_is_less_than_nothing_forgotten() -> None:
    module = module_of(small_model())
    one, four = module.bytes_kept(images(1)), module.bytes_kept(images(4))
    assert 2 < four / one < 4.5
    module.thrifty = True
    assert module.bytes_kept(images(4)) < four / 2


def test_the_number_of_iterations_follows_the_reconstruction() -> None:
    groups = len(GROUPS.groups)
    assert TuneKeys(None).iterations(RECIPE) == RECIPE.schedule.iters * groups
    assert TuneKeys(5).iterations(RECIPE) == 5 * groups
    long = replace(RECIPE, schedule=replace(RECIPE.schedule, iters=20000))
    assert TuneKeys(None).iterations(long) == ENOUGH * groups


def test_logits_that_are_not_finite_end_it_with_a_cure() -> None:
    model = small_model()
    with pytest.raises(ModelError, match=r"tune\.rate"):
        tuned(model, TuneKeys(20, rate=1e38))


def test_a_switched_model_runs_on_what_was_learned() -> None:
    model = small_model()
    model.switch("w3a3")
    first = model(images())  # its weights are ready and cached
    model.switch(None)
    assert tuned(model)
    with at_bits(model, "w3a3"):
        assert not torch.equal(first, model(images()))


def test_a_network_whose_logits_are_all_zero_is_left_in_peace() -> None:
    model = small_model()
    head = model.blocks[-1].get_submodule(list(weights_of(model.blocks[-1]))[-1][0])
    head.weight.latent.zero_()
    if head.bias is not None:
        head.bias.zero_()
    assert not tuned(model)  # there is nothing to gain
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(model).values())
