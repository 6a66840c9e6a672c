"""A block's fit changes what it may and nothing else, learns, and can be taken up again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ptmq_lightning.quant.insert import Placement
from ptmq_lightning.quant.layers import MaskBank
from ptmq_lightning.quant.roundings import RoundingKeys
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.reconstruction import commit, features
from ptmq_lightning.reconstruction.block import BlockReconstruction
from ptmq_lightning.reconstruction.features import Features
from ptmq_lightning.reconstruction.fit import Fit, channel_dim
from ptmq_lightning.reconstruction.place import Place
from ptmq_lightning.reconstruction.recipe import Recipe, Schedule
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.reconstruction.units import UNITS
from ptmq_lightning.runtime.errors import ArtifactError, ModelError
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough, weights_of
from ptmq_lightning.runtime.spec import BitGroups
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.networks import GROUPS, RECIPE, images, mixer, objective, small_model, trainer

KINDS = {
    "shared": RoundingKeys("shared"),
    "offset": RoundingKeys("offset"),
    "per_group": RoundingKeys("per_group", [[3], [4, 5, 6, 8]]),
    "per_width": RoundingKeys("per_width"),
}


def module_of(model: MultiBitModel, index: int, recipe: Recipe = RECIPE) -> BlockReconstruction:
    fit = fit_of(model, index, recipe)
    commit.make_trainable(fit.unit.module, recipe, MaskBank(0))
    return BlockReconstruction(fit).train()


def fit_of(model: MultiBitModel, index: int, recipe: Recipe = RECIPE) -> Fit:
    block = model.chain[index]
    (unit,) = UNITS["block"].units(block, torch.nn.Sequential(*list(model.blocks)[index + 1 :]))
    with passthrough(model), torch.no_grad():
        x = torch.nn.Sequential(*list(model.blocks)[:index])(images(8))
        target = block.module(x)
    place = Place(index, len(model.blocks), block.name, 0, index)
    return Fit(recipe, unit, Features(x, dict.fromkeys(GROUPS.pairs, x)), target, x, place)


@pytest.mark.parametrize(
    ("shape", "channel"),
    [((2, 8, 5, 6), 1), ((2, 5, 6, 8), 3), ((2, 8, 5, 8), 1), ((2, 5, 6, 7), 1), ((2, 6, 8), 2), ((2, 8), 1)],
    ids=["feature map", "channels last", "both as long", "neither", "tokens", "logits"],
)
def test_channels_are_where_the_last_layer_has_them(shape: tuple[int, ...], channel: int) -> None:
    assert channel_dim(small_model().blocks[1], torch.empty(shape)) == channel  # its last layer has 8 channels
    assert channel_dim(torch.nn.ReLU(), torch.empty(shape)) == {4: 1, 3: 2, 2: 1}[len(shape)]


def frozen_tensors(model: MultiBitModel) -> dict[str, Tensor]:
    return {
        f"{name}.{part}": getattr(weight, part).clone()
        for name, weight in weights_of(model)
        for part in ("latent", "latent_step", "ratios", "steps")
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learn", [False, True], ids=["fixed steps", "learned steps"])
def test_integers_stay_and_steps_too_unless_learned(kind: str, learn: bool) -> None:
    model = small_model()
    before = frozen_tensors(model)
    reconstruct_model(model, images(), replace(RECIPE, rounding=KINDS[kind], learn_step_sizes=learn), trainer)
    for name, tensor in frozen_tensors(model).items():
        if learn and name.endswith(".steps"):
            continue
        assert torch.equal(tensor, before[name]), name
    assert all(isinstance(weight, MultiBitWeight) for _, weight in weights_of(model))


@pytest.mark.parametrize("learn", [False, True], ids=["fixed steps", "learned steps"])
def test_exactly_the_rounding_and_the_steps_are_parameters(learn: bool) -> None:
    module = module_of(small_model(), 1, replace(RECIPE, learn_step_sizes=learn))
    kinds = {name.split(".")[-2] for name, _ in module.named_parameters()}
    assert kinds == {"v", "log_step"} | ({"log_gain"} if learn else set())
    optimizer = module.configure_optimizers()["optimizer"]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(module.parameters()))


def test_only_the_drawn_widths_get_gradients() -> None:
    model = small_model()
    x = images(8)
    with passthrough(model), torch.no_grad():
        x = model.blocks[0](x)
        target = model.blocks[1](x)
    module = module_of(model, 1)
    batch = next(iter(features.loader(Features(x, dict.fromkeys(GROUPS.pairs, x)), target, batch=8, iters=1, seed=0)))
    module.draw = lambda: [GROUPS.groups[0][0], GROUPS.groups[1][1], GROUPS.groups[2][0]]  # type: ignore[method-assign]
    module.training_step(batch, 0).backward()
    for name, parameter in module.named_parameters():
        drawn = name.rsplit(".", 1)[-1] in ("3", "6", "8")
        assert (parameter.grad is not None) == (drawn or ".v." in name), name


@pytest.mark.parametrize("how", [KINDS["shared"], RoundingKeys("flexround", rate=0.3)], ids=["soft", "flexround"])
def test_rounding_learns_at_a_constant_rate_and_steps_on_a_cosine_to_zero(how: RoundingKeys) -> None:
    told = Schedule(iters=8, lr_rounding=0.02, lr_activation=0.003, lr_weight_step_size=0.0004)
    module = module_of(small_model(), 1, replace(RECIPE, rounding=how, schedule=told))
    names = {id(parameter): name.split(".")[-2] for name, parameter in module.named_parameters()}
    found: Any = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    rates: dict[str, list[float]] = {}
    for _ in range(told.iters + 1):
        for group in optimizer.param_groups:
            (kind,) = {names[id(parameter)] for parameter in group["params"]}
            rates.setdefault(kind, []).append(group["lr"])
        optimizer.step()
        schedule.step()
    rounding = {"shared": "v", "flexround": "d"}[how.name]
    assert found["lr_scheduler"]["interval"] == "step"
    assert set(rates) == {rounding, "log_step", "log_gain"}
    assert rates[rounding] == pytest.approx([0.02 * how.rate] * 9)
    # at the start, half-way and at the end, where float64 leaves 1e-19 of 0
    assert rates["log_step"][::4] == pytest.approx([0.003, 0.0015, 0], abs=1e-12)
    assert rates["log_gain"][::4] == pytest.approx([0.0004, 0.0002, 0], abs=1e-12)


@pytest.mark.parametrize(("iters", "rate"), [(10, 0.1), (50, 0.1), (100, 0.05), (500, 0.01), (20_000, 0.00025)])
def test_the_rate_of_the_rounding_follows_the_number_of_iterations(iters: int, rate: float) -> None:
    assert Schedule(iters=iters).rounding_rate() == pytest.approx(rate)
    assert Schedule(iters=iters, lr_rounding=0.0).rounding_rate() == 0


def test_a_rounding_that_is_drawn_now_and_then_has_a_higher_rate() -> None:
    """5 bits are one of a group of two: drawn in half of the iterations."""
    told = Schedule(iters=8, lr_rounding=0.02)
    how = RoundingKeys("per_group", planes=[[3, 4], [5]])
    module = module_of(small_model(), 1, replace(RECIPE, rounding=how, schedule=told))
    rates = {
        id(parameter): group["lr"]
        for group in module.configure_optimizers()["optimizer"].param_groups  # type: ignore[index]
        for parameter in group["params"]
    }
    for weight in module.weights:
        if weight.frozen.widths != (8,):
            shared, own = weight.learned()
            assert (rates[id(shared)], rates[id(own)]) == pytest.approx((0.02, 0.04))
    assert told.rounding_rate(0.01) == 0.1  # no faster: Adam would step over the ends
    assert Schedule(iters=8, lr_rounding=0.3).rounding_rate(0.5) == 0.3 and told.rounding_rate(0.0) == 0


def test_the_regularizer_joins_the_loss_when_the_warmup_is_over() -> None:
    model, x = small_model(), images(8)
    schedule = Schedule(iters=10, warmup=0.2, lambda_rounding=0.05, log_every=1)
    module = module_of(model, 1, replace(RECIPE, schedule=schedule))
    with passthrough(model), torch.no_grad():
        x = model.blocks[0](x)
        target = model.blocks[1](x)
    batch = next(iter(features.loader(Features(x, dict.fromkeys(GROUPS.pairs, x)), target, batch=8, iters=1, seed=0)))
    regularizer = []
    for index in range(schedule.iters):
        loss = float(module.training_step(batch, index).detach())
        own = sum(value for name, value in module.latest.items() if name.startswith("loss/w"))  # of gd_direct, all
        regularizer.append(module.latest["loss/rounding"])
        assert loss == pytest.approx(own + 0.05 * regularizer[-1], rel=1e-5)  # float32 sums
    assert regularizer[:2] == [0, 0] and min(regularizer[2:]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_learning_beats_nearest_rounding_at_the_narrowest_width(kind: str) -> None:
    nearest, learned, x = small_model(), small_model(), images(64)
    recipe = replace(RECIPE, rounding=KINDS[kind], schedule=Schedule(iters=60, batch=16, lambda_rounding=1e-3))
    reconstruct_model(learned, x, recipe, trainer)
    with passthrough(nearest):
        target = nearest(x)
    with at_bits(nearest, 3), at_bits(learned, 3):
        assert (learned(x) - target).square().mean() < (nearest(x) - target).square().mean()


def test_a_seeded_fit_keeps_its_loss_curve() -> None:
    results = reconstruct_model(small_model(), images(), RECIPE, trainer)
    # said or not: nothing came before a first pass
    again = reconstruct_model(small_model(), images(), RECIPE, trainer, from_block=0, before=(0, 0))
    assert [r.losses for r in results] == [r.losses for r in again]
    last = results[-2].losses
    # pinned to 5 %: other processors sum in another order, and eight steps amplify that little
    assert last["loss/rounding"] == pytest.approx(189.4, rel=0.05)


@pytest.mark.parametrize(
    ("case", "form"),
    [("none", "mse"), ("case1", "gd_direct"), ("case2", "gd_chain"), ("case3", "gd_figure"), ("matched", "gd_figure")],
)
def test_every_mixer_and_loss_fits_every_block(case: str, form: str) -> None:
    recipe = replace(RECIPE, mixer=mixer(case), objective=objective(form, "token"), schedule=Schedule(iters=2, batch=4))
    results = reconstruct_model(small_model(), images(8), recipe, trainer)
    assert [r.name for r in results] == ["stem", "layer1.0", "layer1.1", "blocks.0", "head"]


def test_the_trained_weight_is_the_committed_one_at_every_width() -> None:
    model = small_model(step_size=StepSize("nested", free_widths=[3]))
    module = module_of(model, 1)
    for weight in module.weights:
        with torch.no_grad():
            weight.v[0].copy_(torch.where(weight.v[0] > 0, 20.0, -20.0))  # settled: soft is hard
    trained = {}
    for bits in (3, 4, 5, 6, 8):
        for name, weight in weights_of(model.blocks[1]):
            weight.select(bits)
            trained[name, bits] = weight().detach()
    commit.commit(model.blocks[1])
    for (name, bits), expected in trained.items():
        assert torch.equal(dict(weights_of(model.blocks[1]))[name].at(bits), expected)


def test_a_run_taken_up_from_a_saved_block_ends_with_the_same_tensors(tmp_path: Path) -> None:
    whole, resumed = small_model(), small_model()
    reconstruct_model(
        whole, images(), RECIPE, trainer,
        after_block=lambda i, _: commit.save_block(whole.blocks[i], tmp_path / f"{i}.safetensors"),
    )  # fmt: skip
    for index in range(3):
        commit.load_block(resumed.blocks[index], tmp_path / f"{index}.safetensors")
    reconstruct_model(resumed, images(), RECIPE, trainer, from_block=3)
    expected = whole.state_dict()
    assert set(expected) == set(resumed.state_dict())
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.state_dict().items())


def test_a_saved_block_of_another_network_is_refused(tmp_path: Path) -> None:
    model = small_model()
    commit.save_block(model.blocks[1], tmp_path / "1.safetensors")
    with pytest.raises(ArtifactError) as error:
        commit.load_block(model.blocks[0], tmp_path / "1.safetensors")
    assert str(error.value) == (
        "1.safetensors holds 10 tensors where the block has 3; the first that differs is 'conv1.ratios'. Expected the "
        "block of the same run: start again without resume."
    )


def test_a_model_without_calibration_is_refused() -> None:
    with pytest.raises(ModelError) as error:
        reconstruct_model(small_model(calibrated=False), images(), RECIPE, trainer)
    assert str(error.value) == (
        "the activation quantizer blocks.1.quantizers.layer1_0_conv1 has no step size yet; expected a calibrated "
        "model. Call quant.steps.calibrate with some images first."
    )


def test_blocks_whose_layers_are_pinned_run_once_a_step() -> None:
    model = small_model(placement=Placement(edge="qdrop"))
    module, x = module_of(model, 0), images(4)
    calls = []
    module.at = lambda width, y: calls.append(width) or model.blocks[0](y)  # type: ignore[method-assign, func-returns-value]
    with torch.no_grad():
        target = model.blocks[0](x)
    batch = next(iter(features.loader(Features(x, dict.fromkeys(GROUPS.pairs, x)), target, batch=4, iters=1, seed=0)))
    module.training_step(batch, 0)
    assert len(calls) == 1


def test_a_fit_that_diverges_stops_at_once_and_names_the_block_iteration_and_rates() -> None:
    model = small_model()
    wild = replace(RECIPE, schedule=replace(RECIPE.schedule, lr_activation=1e30, lr_rounding=1e30))
    with pytest.raises(ModelError) as caught:
        reconstruct_model(model, images(), wild, trainer)
    told = str(caught.value)
    assert "layer1.0 is nan in iteration 1 of 8" in told and "recon.lr_rounding (1e+30)" in told


RELATIVE = replace(RECIPE, objective=objective("gd_direct", relative=True))


@pytest.mark.parametrize("index", [1, 3], ids=["convolutions", "attention"])
def test_in_a_relative_loss_nearest_rounding_is_one_for_each_width(index: int) -> None:
    fit = fit_of(small_model(), index, RELATIVE)
    starts = fit.nearest_errors(None)
    assert set(starts) == set(GROUPS.pairs) and max(starts.values()) > 10 * min(starts.values())
    for pair in GROUPS.pairs:
        output = fit.nearest_output(pair, fit.inputs.fp)
        found = fit.recipe.objective([output], fit.target, fit.channel, None, [starts[pair]])
        assert [float(found[0]), float(found[1][0])] == pytest.approx([1, 1])


def test_a_block_that_rounding_leaves_alone_is_in_units_of_one() -> None:
    fit = fit_of(small_model(), 1, RELATIVE)
    for layer in fit.unit.module.modules():
        if isinstance(weight := getattr(layer, "weight", None), MultiBitWeight):
            weight.latent.zero_()
    fit.target = fit.nearest_output(GROUPS.pairs[0], fit.inputs.fp)
    assert fit.nearest_errors(None)[GROUPS.pairs[0]] == 1


def test_a_relative_loss_is_learned_from_the_same_blocks_start() -> None:
    model = small_model()
    results = reconstruct_model(model, images(), replace(RELATIVE, schedule=Schedule(iters=1, batch=16)), trainer)
    # One iteration with all images, half of whose features are float: never far above nearest rounding's own error.
    for result in results:
        assert all(0 < loss < 2 for name, loss in result.losses.items() if name.startswith("loss/w"))


def test_a_draw_that_learns_nothing_is_passed_over() -> None:
    keys = RoundingKeys("per_group", [[3]])
    recipe = replace(RECIPE, rounding=keys, learn_step_sizes=False, learn_inputs=False, groups=BitGroups.of([[3, 8]]))
    recipe = replace(recipe, schedule=Schedule(iters=8, batch=8))
    model = small_model(pairs=recipe.groups.pairs)
    assert len(reconstruct_model(model, images(), recipe, trainer)) == len(model.blocks)
