"""What the single-pair methods and PTMQ have in common, as equalities of the tensors they learn (PTMQ §3, P1 to P14).

P1 to P5 stand in tests/quant/test_rounding.py and test_layers.py, P14 in tests/test_families.py.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import lightning as L
import pytest
import torch

from ptmq_lightning.compose import parts
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.schema import Config
from ptmq_lightning.quant.layers import MaskBank, TrainableActivation, TrainableWeight
from ptmq_lightning.quant.rounding import Rounding
from ptmq_lightning.reconstruct.reconstruct import BlockResult, Recipe, reconstruct
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of, weights_of
from tests.networks import images, small_model

TINY = ["bits=w4a4", "recon.steps=6", "recon.batch=8", "recon.log_every=1", "recon.warmup=0"]


def trainer() -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def passes(*overrides: str) -> tuple[Recipe, ...]:
    return parts.recipes(configuration([*TINY, *overrides]), small_model())


def learned(recipes: tuple[Recipe, ...], count: int = 16) -> tuple[MultiBitModel, list[BlockResult]]:
    """The small network after the passes, and every block's result."""
    model, results = small_model(), []
    for recipe in recipes:
        results += reconstruct(model, images(count), recipe, trainer)
    return model, results


def same(one: MultiBitModel, other: MultiBitModel) -> bool:
    """Equal codes, steps and zero points, bit by bit."""
    weights = zip(weights_of(one), weights_of(other), strict=True)
    inputs = zip(quantizers_of(one), quantizers_of(other), strict=True)
    return all(torch.equal(a.at(b), c.at(b)) for (_, a), (_, c) in weights for b in a.widths) and all(
        torch.equal(a.steps, c.steps) and torch.equal(a.zero_points, c.zero_points) for (_, a), (_, c) in inputs
    )


def test_p6_unclipped_weights_move_by_less_than_a_step() -> None:
    model, _ = learned(passes("method=qdrop"))
    for _, weight in weights_of(model):
        for row, bits in enumerate(weight.widths):
            u = grid.position(weight.latent, weight.ratios[row])
            low, high = grid.limits(bits)
            moved = (weight.code(bits).float() - u).abs()[(u > low) & (u < high)]
            assert not moved.numel() or float(moved.max()) < 1 + 1e-4  # an integer u may be rounded up, a whole step


@pytest.mark.parametrize("method", ["flexround", "qdrop", "genie", "adaround", "brecq"])
def test_p2_p7_without_a_step_taken_every_method_is_at_nearest(method: str) -> None:
    recipe = passes(f"method={method}")[0]
    still = replace(
        recipe,
        settings=replace(recipe.settings, lr_rounding=0.0, lr_activation=0.0, lr_weight_step=0.0),
        learn_inputs=False,
    )
    assert same(learned((still,))[0], small_model())


def test_p8_genie_without_learned_steps_is_qdrop() -> None:
    genie = passes("method=genie", "recon.lr_weight_step=0")
    assert same(learned(genie)[0], learned(passes("method=qdrop"))[0])


def test_genie_with_learned_steps_is_something_else() -> None:
    assert not same(learned(passes("method=genie"))[0], learned(passes("method=qdrop"))[0])


def test_qdrop_without_drop_is_brecq_with_joint_activations() -> None:
    qdrop = passes("method=qdrop", "recon.drop=0", "mixer.p=0")
    brecq = passes("method=brecq", "recon.quantise=all", "recon.activation=joint")
    assert same(learned(qdrop)[0], learned(brecq)[0])


@pytest.mark.parametrize("loss", ["gd_figure", "gd_direct", "gd_chain", "mse"])
@pytest.mark.parametrize("mixer", ["case3", "matched"])
def test_p10_ptmq_with_one_width_makes_qdrops_steps(mixer: str, loss: str) -> None:
    ptmq = passes(
        "method=ptmq", f"mixer={mixer}", f"loss={loss}", "rounding=shared", "step_size=free", "step_size.learn=false"
    )
    one, losses = learned(ptmq)
    other, expected = learned(passes("method=qdrop"))
    assert [result.losses for result in losses] == [result.losses for result in expected]
    assert same(one, other)


def test_p9_drop_is_the_share_that_stays_in_float() -> None:
    quantizer = ActivationQuantizer((2,), "layer")
    quantizer.steps, quantizer.zero_points = torch.tensor([0.5]), torch.tensor([1.0])
    x = torch.randn(100_000)
    trainable = TrainableActivation(quantizer, MaskBank(0, 0.25)).train()
    trainable.select(2)
    # 1e5 draws: standard error 0.0014; next to none of the values lies on the grid
    assert abs(float((trainable(x) == x).float().mean()) - 0.25) < 0.01


def test_p11_the_regulariser_alone_is_nearest_rounding() -> None:
    recipe = passes("method=qdrop", "recon.lambda_rounding=1e9")[0]
    model, _ = learned((replace(recipe, learn_inputs=False),))
    shares = []
    for (_, found), (_, nearest) in zip(weights_of(model), weights_of(small_model()), strict=True):
        for bits in found.widths:
            shares.append(float((found.code(bits) != nearest.code(bits)).float().mean()))
    assert max(shares) < 0.02  # a fraction of one half to the last digit has no side to go to


def test_p12_a_second_fit_starts_from_the_float_weight_again() -> None:
    model, _ = learned(passes("method=qdrop"))
    for _, weight in weights_of(model):
        again = TrainableWeight(weight, Rounding("shared"), learn_steps=False)
        for bits, rho in zip(weight.widths, weight.ratios, strict=True):
            assert torch.equal(again.floors[bits], torch.floor(grid.position(weight.latent, rho)))


@pytest.mark.parametrize("kind", ["shared", "offset", "ste", "flexround"])
def test_p13_codes_stay_in_their_range(kind: str) -> None:
    model, _ = learned(passes("method=qdrop", f"rounding={kind}", "recon.lr_rounding=10"))
    for _, weight in weights_of(model):
        for bits in weight.widths:
            low, high = grid.limits(bits)
            assert low <= int(weight.code(bits).min()) and int(weight.code(bits).max()) <= high


def test_adaround_and_brecq_learn_rounding_without_any_activation_quantiser() -> None:
    coarse = small_model()
    for _, quantizer in quantizers_of(coarse):
        quantizer.steps = quantizer.steps * 50
    for method in ("adaround", "brecq"):
        recipe = passes(f"method={method}")[0]
        fine, _ = learned((recipe,))
        reconstruct(coarse, images(), recipe, trainer)
        for (name, one), (_, other) in zip(weights_of(fine), weights_of(coarse), strict=True):
            assert torch.equal(one.rounding, other.rounding), (method, name)


def test_fixed_activations_keep_their_calibrated_steps() -> None:
    model, _ = learned(passes("method=qdrop", "recon.activation=fixed"))
    for (path, found), (_, before) in zip(quantizers_of(model), quantizers_of(small_model()), strict=True):
        assert torch.equal(found.steps, before.steps), path


def test_the_second_phase_moves_activation_steps_and_nothing_else() -> None:
    first, second = passes("method=brecq", "recon.activation_steps=3")
    assert (first.settings.steps, second.settings.steps, second.mixer.case) == (6, 3, "float")
    (weights_only, _), (both, _) = learned((first,)), learned((first, second))
    for (name, one), (_, other) in zip(weights_of(weights_only), weights_of(both), strict=True):
        assert torch.equal(one.rounding, other.rounding) and torch.equal(one.steps, other.steps), name
    moved = [
        not torch.equal(one.steps, other.steps)
        for (_, one), (_, other) in zip(quantizers_of(weights_only), quantizers_of(both), strict=True)
    ]
    assert all(moved)


def test_the_second_phase_is_a_quarter_of_the_first_unless_told() -> None:
    assert passes("method=brecq", "recon.steps=100")[1].settings.steps == 25


def test_nearest_rounding_has_no_pass_at_all() -> None:
    assert passes("method=rtn") == ()


@pytest.mark.parametrize("kind", ["ste", "flexround"])
def test_a_learned_weight_serves_ptmq_at_all_widths(kind: str) -> None:
    config: Config = configuration(
        ["method=ptmq", f"rounding={kind}", "bits.groups=[[[3,3],[4,4]],[[5,5],[6,6]],[[8,8]]]",
         "bits.evaluate=[w3a3]", *TINY[1:], "recon.steps=120", "recon.batch=16"]
    )  # fmt: skip
    x = images(64)
    model, nearest = small_model(), small_model()
    for recipe in parts.recipes(config, model):
        reconstruct(model, x, recipe, trainer)
    with torch.no_grad():
        target = nearest(x)
        for width in (3, 4, 8):
            model.switch(width), nearest.switch(width)
            assert (model(x) - target).square().mean() < (nearest(x) - target).square().mean(), width
