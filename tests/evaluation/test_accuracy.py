"""Evaluation: the float network and every width over the same images, each read once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ptmq_lightning.evaluation import accuracy
from ptmq_lightning.evaluation.accuracy import Tally, measure_accuracy
from ptmq_lightning.runtime.errors import DataError, ModelError
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

Batches = list[tuple[Tensor, Tensor]]


def width(bits: int) -> BitAssignment:
    """The stand-in's layer at a width that no network has."""
    return BitAssignment((("fc", BitWidth(bits, bits)),))


def float_logits(model: Any, batches: Batches) -> Tensor:
    with torch.no_grad():
        return model.blocks[0]["fc"](torch.cat([images for images, _ in batches]).flatten(1))


def test_float_accuracy_is_the_share_of_right_answers(model: Any, batches: Batches) -> None:
    labels = torch.cat([labels for _, labels in batches])
    order = float_logits(model, batches).argsort(1, descending=True)
    result = measure_accuracy(model, batches, [])
    assert result.images == 22
    assert result.fp["top1"] == pytest.approx(
        100 * float((order[:, 0] == labels).float().mean()), abs=1e-4
    )  # rounded to four places
    right = (order[:, :5] == labels[:, None]).any(1)
    assert result.fp["top5"] == pytest.approx(100 * float(right.float().mean()), abs=1e-4)  # rounded to four places


def test_accuracy_counts_images_and_not_classes(model: Any, batches: Batches) -> None:
    images = torch.cat([images for images, _ in batches])
    labels = float_logits(model, batches).argmax(1)
    labels[:11] = (labels[:11] + 1) % 6  # half of the answers wrong, unevenly over the classes
    assert measure_accuracy(model, [(images, labels)], []).fp["top1"] == 50.0


def test_the_logit_error_is_the_squared_error_over_the_squared_signal(model: Any, batches: Batches) -> None:
    row = measure_accuracy(model, batches, [3]).rows[0]
    expected = 22 * 6 * 2.0**-6 / float(float_logits(model, batches).double().square().sum())
    assert row.logit_error == pytest.approx(expected, rel=1e-5)  # float32 logits
    assert row.sqnr_db == pytest.approx(-10 * math.log10(expected), abs=1e-4)  # the same, in decibels


def test_agreement_is_the_share_of_the_float_networks_answers(model: Any, batches: Batches) -> None:
    fp = float_logits(model, batches)
    shifted = fp + 0.5 * torch.tensor([1.0, -1.0] * 3)
    row = measure_accuracy(model, batches, [width(1)]).rows[0]
    assert 0 < row.agreement < 100
    expected = 100 * float((shifted.argmax(1) == fp.argmax(1)).float().mean())
    assert row.agreement == pytest.approx(expected, abs=1e-4)  # rounded to four places


def test_rows_come_in_the_order_asked_for(model: Any, batches: Batches) -> None:
    rows = measure_accuracy(model, batches, ["w4a8", 8, 2]).rows
    assert [(row.config, row.w_bits, row.a_bits) for row in rows] == [("w4a8", 4, 8), ("w8a8", 8, 8), ("w2a2", 2, 2)]


def test_an_assignment_is_called_by_its_name_or_else_by_its_average_bits(model: Any, batches: Batches) -> None:
    stored, loose = model.resolve("w3a5"), model.resolve("w4a6")
    model.assignments["mixed_3.0"] = stored
    assert [row.config for row in measure_accuracy(model, batches, [stored, loose]).rows] == [
        "mixed_3.0",
        "average_w4.00a6.00",
    ]


def test_equal_logits_have_no_sqnr(model: Any, batches: Batches) -> None:
    row = measure_accuracy(model, batches, [width(200)]).rows[0]  # an error of 2^-200 is nothing in float32
    assert (row.sqnr_db, row.logit_error, row.agreement) == (None, 0.0, 100.0)


def test_the_loader_is_read_once(model: Any, batches: Batches) -> None:
    once = iter(batches)
    assert len(measure_accuracy(model, once, [8, 4]).rows) == 2
    assert next(once, None) is None


def test_each_width_is_selected_once_for_images_that_fit_in_memory(model: Any, batches: Batches) -> None:
    measure_accuracy(model, batches, [8, 4])
    counting = [None]  # the pass that counts multiply-accumulates
    assert model.batches == [None] * 3 + [8] * 3 + [4] * 3 + counting


def test_figures_do_not_depend_on_how_many_images_are_held(
    model: Any, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure_accuracy(model, batches, [8, 2])
    monkeypatch.setattr(accuracy, "CHUNK_BYTES", 1)
    assert measure_accuracy(model, batches, [8, 2]) == whole


def test_the_selection_is_the_same_afterwards(model: Any, batches: Batches) -> None:
    model.switch(2)
    before = model.active
    measure_accuracy(model, batches, [8, 4])
    assert model.active == before


def test_progress_is_told_after_each_width(model: Any, batches: Batches) -> None:
    told: list[tuple[int, str]] = []
    measure_accuracy(model, batches, [8, 4], progress=lambda done, name: told.append((done, name)))
    assert told == [(22, "w8a8"), (22, "w4a4")]


def test_below_five_classes_there_is_no_top5(model: Any, batches: Batches) -> None:
    model.blocks[0]["fc"] = torch.nn.Linear(12, 4)
    model.layers["fc"] = replace(model.layers["fc"], weight_shape=(4, 12))
    few = [(images, labels % 4) for images, labels in batches]
    result = measure_accuracy(model, few, [8])
    assert (result.fp["top5"], result.rows[0].top5) == (None, None)


def test_no_images_are_an_error(model: Any) -> None:
    with pytest.raises(DataError) as error:
        measure_accuracy(model, [], [4])
    assert str(error.value) == "the evaluation loader gave no images; set data.val or data.val_images"


def test_labels_beyond_the_networks_classes_are_an_error(model: Any, batches: Batches) -> None:
    images, labels = batches[0]
    labels[0] = 6
    labels[1] = 0
    with pytest.raises(DataError) as error:
        measure_accuracy(model, [(images, labels)], [4])
    assert str(error.value) == (
        "evaluation labels run from 0 to 6, but the network has 6 classes; set data.class_map so "
        "that class folders get the "
        "network's own class numbers"
    )


def test_logits_that_are_not_finite_are_an_error(model: Any, batches: Batches) -> None:
    batches[0][0][0, 0, 0, 0] = float("inf")
    with pytest.raises(ModelError) as error:
        measure_accuracy(model, batches, [4])
    assert str(error.value) == (
        "logits at the float network are not finite; expected finite logits: "
        "check the network's weights and the activation steps"
    )


def test_a_network_of_one_class_is_always_right_and_has_its_logit_error() -> None:
    tally = Tally(1, torch.device("cpu"))
    tally.add([torch.tensor([[1.0], [-3.0]])], [torch.tensor([[2.0], [-3.0]])], [torch.tensor([0, 0])])
    assert (tally.top(1), tally.top(5), tally.agreement()) == (100.0, None, 100.0)
    assert tally.logit_error() == pytest.approx(1 / 13)
