"""What the single-pair methods and PTMQ have in common, as equalities of the tensors they learn (PTMQ §3, P1 to P14).

P1 to P5 stand in tests/quant/test_rounding.py and test_layers.py, P4's schedule inside a fit in
tests/reconstruction/test_reconstruct.py and tests/compose/test_pipeline.py, P14 in tests/test_families.py.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config import parts
from ptmq_lightning.config.reads import unread
from ptmq_lightning.quant.layers import MaskBank, TrainableActivation
from ptmq_lightning.quant.planes import Shared
from ptmq_lightning.quant.roundings import ROUNDINGS, RoundingKeys
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.reconstruct import BlockResult, reconstruct_model
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, quantizers_of, weights_of
from ptmq_lightning.runtime.spec import BitGroups, BitWidth
from tests.networks import images, small_model, trainer

TINY = ["bits=w4a4", "recon.iters=4", "recon.batch=4", "recon.log_every=1", "recon.warmup=0"]
FINE = "[[w3a8],[w4a8],[w8a8]]"  # groups whose activations are fine: errors at 3 bits are the weights'


@cache
def nearest() -> MultiBitModel:
    """The small network at one pair of widths, as every fit finds it."""
    return small_model(pairs=(BitWidth(4, 4),))


def passes(*overrides: str) -> tuple[Recipe, ...]:
    method = configuration([TINY[0], *overrides])
    read = [part for part in TINY if not list(unread(method, [part]))]
    return parts.recipes(configuration([*read, *overrides]), nearest())


def fit(*recipes: Recipe) -> tuple[MultiBitModel, list[BlockResult]]:
    """The small network after the passes, and every block's result."""
    model, results = deepcopy(nearest()), []
    for recipe in recipes:
        results += reconstruct_model(model, images(8), recipe, trainer)
    return model, results


@cache
def learned(*overrides: str) -> tuple[MultiBitModel, list[BlockResult]]:
    """What the command learns, made once for all tests; the model is only to be read."""
    return fit(*passes(*overrides))


def same(one: MultiBitModel, other: MultiBitModel) -> bool:
    """Equal codes, steps and zero points, bit by bit."""
    weights = zip(weights_of(one), weights_of(other), strict=True)
    inputs = zip(quantizers_of(one), quantizers_of(other), strict=True)
    return all(torch.equal(a.at(b), c.at(b)) for (_, a), (_, c) in weights for b in a.widths) and all(
        torch.equal(a.steps, c.steps) and torch.equal(a.zero_points, c.zero_points) for (_, a), (_, c) in inputs
    )


def features(model: MultiBitModel, which: str | None) -> Tensor:
    """What the head reads, (B, T, C), at a width; None: in float."""
    with at_bits(model, which), torch.no_grad():
        behind: Tensor = nn.Sequential(*model.blocks[:-1])(images(64))
    return behind


def test_p6_unclipped_weights_move_by_less_than_a_step() -> None:
    for _, weight in weights_of(learned("method=qdrop")[0]):
        for row, bits in enumerate(weight.widths):
            u = grid.position(weight.latent, weight.ratios[row])
            low, high = grid.limits(bits)
            moved = (weight.code(bits).float() - u).abs()[(u > low) & (u < high)]
            assert not moved.numel() or float(moved.max()) < 1 + 1e-4  # an integer u may be rounded up, a whole step


@pytest.mark.parametrize("method", ["adaround", "flexround", "genie"])
def test_p2_p7_without_a_step_taken_a_method_is_at_nearest(method: str) -> None:
    recipe = passes(f"method={method}")[0]
    rates = {"lr_rounding": 0.0, "lr_weight_step_size": 0.0, "iters": 1}
    still = replace(recipe, schedule=replace(recipe.schedule, **rates), learn_inputs=False)  # type: ignore[arg-type]
    assert same(fit(still)[0], nearest())


def test_p8_genie_without_learned_steps_is_qdrop_and_with_them_is_not() -> None:
    qdrop, _ = learned("method=qdrop")
    assert same(learned("method=genie", "recon.lr_weight_step_size=0")[0], qdrop)
    assert not same(learned("method=genie")[0], qdrop)


def test_qdrop_without_drop_is_brecq_with_joint_activations() -> None:
    qdrop, _ = learned("method=qdrop", "method.drop=0", "mixer.p=0")
    brecq, _ = learned("method=brecq", "method.quantize=all", "method.activation=joint")
    assert same(qdrop, brecq)


@pytest.mark.parametrize(("mixer", "loss"), [("case3", "gd_figure"), ("matched", "gd_direct"), ("case1", "gd_chain")])
def test_p10_ptmq_with_one_width_makes_qdrops_steps(mixer: str, loss: str) -> None:
    found, losses = learned(
        "method=ptmq", f"mixer={mixer}", f"loss={loss}", "rounding=shared", "step_size=free", "step_size.learn=false",
        "method.bias_correction=none", "loss.relative=false",
    )  # fmt: skip
    qdrop, expected = learned("method=qdrop")
    assert [result.losses for result in losses] == [result.losses for result in expected]
    assert same(found, qdrop)


def test_p9_drop_is_the_share_that_stays_in_float() -> None:
    quantizer = ActivationQuantizer((2,), "layer")
    quantizer.steps, quantizer.zero_points = torch.tensor([0.5]), torch.tensor([1.0])
    x = torch.randn(100_000)
    trainable = TrainableActivation(quantizer, MaskBank(0, 0.25)).train()
    trainable.select(2)
    # 1e5 draws: standard error 0.0014; next to none of the values lies on the grid
    assert abs(float((trainable(x) == x).float().mean()) - 0.25) < 0.01


def test_p11_the_regularizer_alone_is_nearest_rounding() -> None:
    alone = ["loss=gd_figure", "loss.gammas=[0.0]"]  # nothing pulls but the regularizer, far enough to reach the ends
    recipe = passes("method=qdrop", *alone, "recon.iters=60", "recon.lr_rounding=0.5")[0]
    model, results = fit(replace(recipe, learn_inputs=False))
    assert same(model, nearest())
    # 0.85 to 0.99, from at most 0.03: what stays started at V = 0, a tie, where the regularizer has no slope
    assert all(result.losses["settled"] > 0.8 for result in results) and len(results) == 5


def test_p12_a_second_fit_starts_from_the_float_weight_again() -> None:
    for _, weight in weights_of(learned("method=qdrop")[0]):
        again = Shared(weight, RoundingKeys("shared"), learn_step_sizes=False)
        for bits, rho in zip(weight.widths, weight.ratios, strict=True):
            assert torch.equal(again.floors[bits], torch.floor(grid.position(weight.latent, rho)))


@pytest.mark.parametrize("kind", ["shared", "offset", "ste", "flexround"])
def test_p13_codes_stay_in_their_range(kind: str) -> None:
    torch.manual_seed(0)
    for _, weight in weights_of(nearest()):
        trainable = ROUNDINGS[kind](weight, RoundingKeys(kind), learn_step_sizes=True)
        for parameter in trainable.parameters():
            torch.nn.init.normal_(parameter, std=3.0)
        committed = trainable.committed()
        for bits in weight.widths:
            low, high = grid.limits(bits)
            assert low <= int(committed.code(bits).min()) and int(committed.code(bits).max()) <= high


@pytest.mark.parametrize("method", ["adaround", "brecq"])
def test_rounding_on_weights_alone_sees_no_activation_quantizer(method: str) -> None:
    coarse = deepcopy(nearest())
    for _, quantizer in quantizers_of(coarse):
        quantizer.steps = quantizer.steps * 50
    recipe = passes(f"method={method}")[0]
    reconstruct_model(coarse, images(8), recipe, trainer)
    for (name, one), (_, other) in zip(weights_of(fit(recipe)[0]), weights_of(coarse), strict=True):
        assert torch.equal(one.rounding, other.rounding), name


def test_fixed_activations_keep_their_calibrated_steps() -> None:
    model, _ = learned("method=qdrop", "method.activation=fixed")
    for (path, found), (_, before) in zip(quantizers_of(model), quantizers_of(nearest()), strict=True):
        assert torch.equal(found.steps, before.steps), path


def test_the_second_phase_moves_activation_steps_and_nothing_else() -> None:
    first, second = passes("method=brecq", "recon.activation_iters=3")
    assert (first.schedule.iters, second.schedule.iters, second.mixer.keys.name) == (4, 3, "float")
    assert (first.objective.p, second.objective.p) == (2, 2.4)
    weights_only, _ = fit(first)
    both = deepcopy(weights_only)
    results = reconstruct_model(both, images(8), second, trainer)
    assert results[0].losses == {}  # the stem reads the image, which has no step
    for (name, one), (_, other) in zip(weights_of(weights_only), weights_of(both), strict=True):
        assert torch.equal(one.rounding, other.rounding) and torch.equal(one.steps, other.steps), name
    pairs = zip(quantizers_of(weights_only), quantizers_of(both), strict=True)
    assert all(not torch.equal(one.steps, other.steps) for (_, one), (_, other) in pairs)


def test_the_second_phase_is_a_quarter_of_the_first_unless_told() -> None:
    assert passes("method=brecq", "recon.iters=100")[1].schedule.iters == 25


def test_nearest_rounding_has_no_pass_at_all() -> None:
    assert passes("method=rtn") == ()


@pytest.mark.parametrize("kind", ["ste", "flexround"])
def test_a_learned_weight_alone_reconstructs_the_narrowest_width_better_than_nearest(kind: str) -> None:
    config = configuration(
        ["method=ptmq", f"rounding={kind}", "step_size.learn=false", f"bits.groups={FINE}", "bits.evaluate=[w3a8]",
         *TINY[1:4], "recon.iters=60", "recon.batch=16", "recon.lr_rounding=0.03"]
    )  # fmt: skip
    before = small_model(pairs=BitGroups.of([["w3a8"], ["w4a8"], ["w8a8"]]).pairs)
    model, target = deepcopy(before), features(before, None)
    for recipe in parts.recipes(config, model):
        reconstruct_model(model, images(64), recipe, trainer)
    after, at_first = (float((features(m, "w3a8") - target).square().mean()) for m in (model, before))
    assert after < 0.7 * at_first  # 0.28 to 0.51 over four seeds; 1.00 where the weight stays, 0.87 with steps alone


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ste", "flexround"])
def test_a_learned_weight_serves_ptmq_at_all_widths_and_helps_the_narrowest(kind: str) -> None:
    config = configuration(
        ["method=ptmq", f"rounding={kind}", "bits.groups=[[w3a3,w4a4],[w5a5,w6a6],[w8a8]]",
         "bits.evaluate=[w3a3]", *TINY[1:4], "recon.iters=120", "recon.batch=16"]
    )  # fmt: skip
    x, model, before = images(64), small_model(), small_model()
    for recipe in parts.recipes(config, model):
        reconstruct_model(model, x, recipe, trainer)
    errors: dict[str, list[float]] = {"learned": [], "nearest": []}
    with torch.no_grad():
        target = before(x)
        for width in (3, 4, 8):
            for name, network in (("learned", model), ("nearest", before)):
                network.switch(width)
                errors[name].append(float((network(x) - target).square().mean()))
    assert errors["learned"][0] < errors["nearest"][0]  # wider ones pay for sharing one weight with it
    assert errors["learned"][2] < errors["learned"][0]
