"""A model whose numbers nothing can be computed with is refused, by the name of the first one; `verify` counts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ptmq_lightning.artifact.artifact import save
from ptmq_lightning.artifact.sound import check_numbers
from ptmq_lightning.artifact.verify import verify
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of, weights_of
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.artifact.tiny import tiny_model


def weight_of(model: MultiBitModel) -> MultiBitWeight:
    return next(weights_of(model))[1]


def quantizer_of(model: MultiBitModel) -> ActivationQuantizer:
    return next(quantizers_of(model))[1]


def zero_points(*values: float) -> Callable[[MultiBitModel], None]:
    return lambda model: setattr(quantizer_of(model), "zero_points", torch.tensor(values))


def steps(*values: float) -> Callable[[MultiBitModel], None]:
    return lambda model: setattr(quantizer_of(model), "steps", torch.tensor(values))


def weight_step(value: float) -> Callable[[MultiBitModel], None]:
    return lambda model: weight_of(model).steps[1, 1].fill_(value) and None


def bias(value: float) -> Callable[[MultiBitModel], None]:
    return lambda model: model.get_submodule("blocks.0.fc").bias.data[1].fill_(value) and None


def with_a_table(model: MultiBitModel) -> None:
    """Codes of a table lie on the uniform grid of 8 bits at every width."""
    quantizer_of(model).tables = torch.zeros(2, 256)
    zero_points(255, 255)(model)


@pytest.mark.parametrize("change", [zero_points(0, 0), zero_points(15, 255), with_a_table])
def test_zero_points_may_be_any_code(change: Callable[[MultiBitModel], None]) -> None:
    model = tiny_model()
    change(model)
    counts = check_numbers(model)
    assert (counts["weights"], counts["activations"]) == (2, 2)
    floats = [t for t in (*model.buffers(), *model.parameters()) if t.is_floating_point()]
    assert 0 < counts["tensors"] == len(floats) < len([*model.buffers(), *model.parameters()])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (zero_points(16, 128), ("'quantizers.fc'", "4 bits", "0 to 15")),
        (zero_points(8, 256), ("'quantizers.fc'", "8 bits", "0 to 255")),
        (zero_points(-1, 128), ("'quantizers.fc'", "4 bits", "-1.0")),
        (zero_points(8, 0.5), ("'quantizers.fc'", "8 bits", "0.5")),
        (steps(0, 1), ("'quantizers.fc'", "4 bits", "step size 0.0")),
        (steps(1, float("inf")), ("'quantizers.fc'", "8 bits", "inf")),
        (weight_step(0), ("layer 'fc'", "8 bits", "0.0")),
        (weight_step(float("nan")), ("layer 'fc'", "8 bits", "nan")),
        (bias(float("inf")), ("fc.bias", "finite")),
    ],
)
def test_a_number_that_nothing_can_be_computed_with_is_named(
    change: Callable[[MultiBitModel], None], named: tuple[str, ...]
) -> None:
    model = tiny_model()
    change(model)
    with pytest.raises(ArtifactError) as error:
        check_numbers(model)
    assert all(part in str(error.value) for part in named), error.value


def test_verify_says_how_much_it_looked_at(tmp_path: Path) -> None:
    model = tiny_model()
    save(model, tmp_path / "model")
    whole, ranges, finite, codes = verify(tmp_path / "model")
    assert "1 layers" in whole and "all 2 pairs" in ranges and "all 2 pairs" in codes
    assert f"all {check_numbers(model)['tensors']} tensors" in finite


@pytest.mark.parametrize(("code", "fits"), [(-8, True), (7, True), (-9, False), (8, False)])
def test_verify_refuses_codes_beyond_their_width(
    code: int, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny_model(), tmp_path / "model")
    monkeypatch.setattr(MultiBitWeight, "code", lambda self, bits: torch.tensor([code if bits == 4 else 0]))
    if fits:
        assert len(list(verify(tmp_path / "model"))) == 4
        return
    with pytest.raises(ArtifactError) as error:
        list(verify(tmp_path / "model"))
    assert "4 bits" in str(error.value) and str(code) in str(error.value) and "-8 to 7" in str(error.value)
