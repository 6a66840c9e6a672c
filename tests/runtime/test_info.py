"""What a model tells of itself is read back as it was written, and anything else is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ptmq_lightning.runtime.errors import ModelError, PTMQError
from ptmq_lightning.runtime.info import Evaluation, ModelInfo, Row, figure
from ptmq_lightning.runtime.preprocessing import Preprocessing
from ptmq_lightning.runtime.spec import BitGroups

PICTURES = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)
WHOLE = ModelInfo(
    "small",
    "random weights",
    preprocessing=PICTURES,
    groups=BitGroups.of([["w3a3", "w4a4"], [8]]),
    data="digits",
    accuracy=Evaluation({"top1": 70.0, "top5": None}, [Row("w4a4", 4, 4, 61.5, None, 75.25, 9.5, 0.1, 100, 10)], 200),
    classes=("cat", "dog"),
)


@pytest.mark.parametrize("info", [ModelInfo(), ModelInfo(input_size=(1, 2, 3)), WHOLE])
def test_info_survives_json(info: ModelInfo) -> None:
    assert ModelInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


def test_the_size_of_the_images_is_that_of_the_preprocessing() -> None:
    assert WHOLE.input_size == (3, 8, 8)
    assert replace(WHOLE, preprocessing=None).input_size == (3, 8, 8), "it stays where nothing else is known"
    with pytest.raises(ModelError, match=r"info\.input_size is \(3, 9, 9\); expected .* \(3, 8, 8\)"):
        ModelInfo(input_size=(3, 9, 9), preprocessing=PICTURES)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"nickname": "x"}, "info lacks nothing and has the unknown nickname"),
        ({"name": 3}, "info.name is 3 (int), expected str"),
        ({"input_size": [3, 8]}, "info.input_size is (3, 8); expected (channels, height, width)"),
        ({"preprocessing": {"mean": [0.5]}}, "the network's preprocessing has no input_size"),
        ({"groups": [3]}, "found the bit groups [3]; expected lists of pairs"),
        ({"classes": ["cat", 1]}, "info.classes[1] is 1 (int), expected str"),
        ({"accuracy": {"fp": {}, "rows": [], "images": 1}}, "info.accuracy.fp lacks top1, top5"),
        ({"accuracy": {"fp": {"top1": 1, "top5": 2}, "rows": [{}], "images": 1}}, "info.accuracy.rows[0] lacks config"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(PTMQError) as error:
        ModelInfo.from_json(WHOLE.to_json() | change)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize("values", [None, [], {}, "x"])
def test_what_is_no_info_is_refused(values: Any) -> None:
    with pytest.raises(ModelError):
        ModelInfo.from_json(values)


def test_a_figure_that_is_missing_is_a_dash() -> None:
    assert (figure(None), figure(61.499), figure(1234.5, 0), figure(None, missing="")) == ("-", "61.50", "1,234", "")
