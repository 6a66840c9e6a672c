"""The configuration's groups become the values that the rooms take."""

from __future__ import annotations

import pytest

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config import parts
from ptmq_lightning.reconstruction.objective import Objective
from tests.networks import small_model


def objective(*overrides: str) -> Objective:
    """That of a network with attention."""
    config = configuration(overrides)
    return parts.objective(config, attention=True)


def test_where_there_is_attention_errors_count_by_token_or_by_weight() -> None:
    found = [objective("loss=gd_direct"), objective("loss=fim"), objective("loss=mse", "loss.weight=aph")]
    assert [(o.keys.name, o.normed, o.keys.weight) for o in found] == [
        ("gd_direct", True, "none"), ("gd_direct", False, "fim"), ("mse", False, "aph"),
    ]  # fmt: skip


def test_attention_is_read_off_the_layers() -> None:
    (recipe,) = parts.recipes(configuration(), small_model(calibrated=False))  # which has products of activations
    assert recipe.objective.normed


def test_a_layer_is_fitted_to_its_output_as_it_is() -> None:
    (recipe,) = parts.recipes(configuration(["method.unit=layer"]), small_model(calibrated=False))
    assert recipe.objective.normed is False


def test_no_error_is_weighted_in_the_second_phase() -> None:
    first, second = parts.recipes(
        configuration(["method=brecq", "bits=w4a4", "loss=fim"]), small_model(calibrated=False)
    )
    assert (first.objective.keys.weight, first.objective.p) == ("fim", 2)
    assert (second.objective.keys.weight, second.objective.normed, second.objective.p) == ("none", True, 2.4)


def test_a_learned_weight_moves_at_a_share_of_the_rate_of_the_rounding_variables() -> None:
    kinds = ("shared", "ste", "flexround")
    assert [configuration([f"rounding={kind}"]).rounding.rate for kind in kinds] == [1.0, 0.3, 0.3]


def test_options_of_the_quantizers_and_of_the_commit_reach_their_rooms() -> None:
    config = configuration(["placement.gelu=table", "method.bias_correction=after"])
    assert config.placement.gelu == "table"
    assert [recipe.bias_correction for recipe in parts.recipes(config, small_model(calibrated=False))] == ["after"]


@pytest.mark.parametrize(("when", "phases"), [("after", ["none", "after"]), ("during", ["during", "during"])])
def test_of_two_phases_the_last_corrects_biases_and_the_first_where_they_are_kept(when: str, phases: list[str]) -> None:
    config = configuration(["method=brecq", "bits=w4a4", f"method.bias_correction={when}"])
    assert [recipe.bias_correction for recipe in parts.recipes(config, small_model(calibrated=False))] == phases


@pytest.mark.parametrize("method", ["ptmq_paper", "qdrop", "brecq", "adaround", "genie", "flexround", "rtn"])
def test_no_other_method_corrects_biases_or_has_a_relative_loss(method: str) -> None:
    config = configuration([f"method={method}"])
    assert (config.method.bias_correction, config.loss.relative) == ("none", False)
