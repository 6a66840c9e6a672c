"""Widths, assignments and groups are plain values that refuse what they cannot mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.spec import BitAssignment, BitGroups, BitWidth


@pytest.mark.parametrize("text", ["w4a8", (4, 8), [4, 8], BitWidth(4, 8)])
def test_a_width_is_read_from_all_its_forms(text: object) -> None:
    assert BitWidth.parse(text) == (4, 8) and str(BitWidth.parse(text)) == "w4a8"


def test_a_number_means_both_sides() -> None:
    assert BitWidth.parse(4) == (4, 4)


@pytest.mark.parametrize("text", ["4", "a4w4", True, (1, 2, 3), "w4a"])
def test_other_forms_are_refused(text: object) -> None:
    with pytest.raises(ConfigError) as error:
        BitWidth.parse(text)
    assert str(error.value) == (
        f"found the bit-width {text!r}; expected a number, a pair (w, a) or a name like 'w4a8'."
    )


def test_widths_outside_the_range_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        BitWidth.parse("w1a9")
    assert str(error.value) == (
        "found the bit-width w1a9; expected 2 to 8 bits for weights and activations. Choose widths in that range."
    )


def test_an_assignment_survives_json() -> None:
    assignment = BitAssignment((("a", BitWidth(4, 4)), ("b", BitWidth(8, 8))))
    assert BitAssignment.from_json(assignment.to_json()) == assignment
    assert hash(assignment) == hash(BitAssignment.from_json(assignment.to_json()))


def test_a_width_stands_in_one_group_only() -> None:
    with pytest.raises(ConfigError) as error:
        BitGroups.of([[3, 4], [4, 8]])
    assert str(error.value) == "found w4a4 more than once in the bit groups; expected it once."


def test_empty_groups_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        BitGroups.of([[3], []])
    assert str(error.value) == (
        "found the bit groups [['w3a3'], []]; expected at least one group and no empty one, "
        "e.g. [[w3a3, w4a4], [w8a8]]."
    )


def test_whole_numbers_of_any_library_are_widths_and_fractions_are_not() -> None:
    assert BitWidth.parse(np.int64(4)) == BitWidth.parse((np.uint8(4), torch.tensor(4))) == (4, 4)
    for wrong in (4.0, (4.7, 4), ("x", 4), (4,), None):
        with pytest.raises(ConfigError, match="expected a number, a pair"):
            BitWidth.parse(wrong)  # type: ignore[arg-type]
