"""The embedded digits: the same division in every run, stratified, nothing in both parts."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import PREPROCESSING

from ptmq_lightning.data.digits import Digits, open_digits
from ptmq_lightning.data.sources import open_data


@pytest.fixture(scope="module")
def parts() -> tuple[Digits, Digits]:
    return open_digits(PREPROCESSING)


def test_no_digit_is_in_both_parts(parts: tuple[Digits, Digits]) -> None:
    train, val = ({part.digest(i) for i in range(len(part))} for part in parts)
    assert not train & val


def test_the_division_is_stratified(parts: tuple[Digits, Digits]) -> None:
    train, val = (np.bincount(part.labels) / len(part) for part in parts)
    assert np.abs(train - val).max() < 0.002  # a share of 700 can be off by one image: 1/700


def test_the_division_does_not_depend_on_the_seed() -> None:
    first, second = (open_data("digits", preprocessing=PREPROCESSING, seed=seed) for seed in (0, 1))
    assert np.array_equal(first.val.pixels, second.val.pixels)
    assert first.describe()["train_images"] == 1097


def test_an_image_is_gray_in_three_channels_of_the_networks_size(parts: tuple[Digits, Digits]) -> None:
    image, label = parts[0][0]
    assert image.shape == (3, 8, 8)
    assert (image[0] == image[1]).all()
    assert (image[0] == image[2]).all()
    assert label in range(10)


def test_a_subset_is_seeded_and_smaller() -> None:
    assert len(open_data("digits", val_images=50, preprocessing=PREPROCESSING).val) == 50
