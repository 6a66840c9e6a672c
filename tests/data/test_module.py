"""The calibration draw is seeded, fair from its start, and free of evaluation images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import PREPROCESSING, folders, png, tar, values

from ptmq_lightning.data.module import calibration_images, calibration_labels, draw_calibration, eval_loader
from ptmq_lightning.data.sources import open_data
from ptmq_lightning.runtime.errors import DataError


def test_the_draw_depends_on_the_seed_only() -> None:
    assert draw_calibration(range(100), 10, 3) == draw_calibration(range(100), 10, 3)
    assert draw_calibration(range(100), 10, 3) != draw_calibration(range(100), 10, 4)
    assert len(set(draw_calibration(range(100), 100, 3))) == 100


def test_a_smaller_draw_is_the_beginning_of_a_larger_one() -> None:
    assert draw_calibration(range(100), 40, 0)[:10] == draw_calibration(range(100), 10, 0)


def test_images_that_are_in_both_sources_are_passed_over(tmp_path: Path) -> None:
    train, val = folders(tmp_path / "train", "ab", 5), folders(tmp_path / "val", "ab", 2, first=50)
    for value in (3, 7):
        (val / "a" / f"copy{value}.png").write_bytes(png(value))
    sources = open_data("imagefolder", train=train, val=val, preprocessing=PREPROCESSING)
    drawn = draw_calibration(sources.train, 8, 0, sources.val)
    assert {values(sources.train)[i] for i in drawn} == set(range(10)) - {3, 7}


def test_too_large_a_draw_is_an_error() -> None:
    with pytest.raises(DataError) as error:
        draw_calibration(range(5), 6, 0)
    assert str(error.value) == (
        "data.calibration_images=6, but the calibration source holds 5 images; set "
        "data.calibration_images between 1 and 5"
    )


def test_too_large_a_draw_counts_shared_images(tmp_path: Path) -> None:
    folders(tmp_path / "train", "a", 3)
    folders(tmp_path / "val", "a", 1, first=2)
    sources = open_data("imagefolder", root=tmp_path, preprocessing=PREPROCESSING)
    with pytest.raises(DataError) as error:
        draw_calibration(sources.train, 3, 0, sources.val)
    assert str(error.value) == (
        "data.calibration_images=3, but the calibration source holds 3 images, 1 of them evaluation images too; "
        "set data.calibration_images between 1 and 2"
    )


def test_a_source_of_nothing_but_evaluation_images_is_to_be_replaced(tmp_path: Path) -> None:
    folders(tmp_path / "train", "a", 2)
    folders(tmp_path / "val", "a", 2)
    sources = open_data("imagefolder", root=tmp_path, preprocessing=PREPROCESSING)
    with pytest.raises(DataError, match=r"2 of them evaluation images too; give a source with other"):
        draw_calibration(sources.train, 1, 0, sources.val)


def test_the_images_come_in_the_order_of_the_draw(tmp_path: Path) -> None:
    folders(tmp_path / "train", "a", 3)
    folders(tmp_path / "val", "a", 1, first=50)
    train = open_data("imagefolder", root=tmp_path, preprocessing=PREPROCESSING).train
    images = calibration_images(train, [2, 0])
    assert images.dtype == torch.float32
    assert torch.equal(images, torch.stack([train[2][0], train[0][0]]))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_evaluation_loader_gives_every_image_once_in_order(tmp_path: Path, workers: int) -> None:
    place = tar(tmp_path / "val.tar", folders(tmp_path / "v", "ab", 5))
    folders(tmp_path / "train", "ab", 1, first=50)
    val = open_data("imagefolder", train=tmp_path / "train", val=place, preprocessing=PREPROCESSING).val
    _ = val[0]  # opens the tar in this process, before the workers start
    images, labels = zip(*eval_loader(val, 4, workers=workers), strict=True)
    assert [len(batch) for batch in images] == [4, 4, 2]
    assert torch.equal(torch.cat(images), torch.stack([val[i][0] for i in range(10)]))
    assert torch.cat(labels).tolist() == [0] * 5 + [1] * 5


def test_labels_come_in_the_order_of_the_draw(tmp_path: Path) -> None:
    folders(tmp_path / "train", "ab", 3)
    folders(tmp_path / "val", "ab", 1, first=50)
    train = open_data("imagefolder", root=tmp_path, preprocessing=PREPROCESSING).train
    assert calibration_labels(train, [5, 0, 4]).tolist() == [1, 0, 1]


def test_images_without_a_label_cannot_be_trained_on(tmp_path: Path) -> None:
    folders(tmp_path / "train", "xy", 2)
    folders(tmp_path / "val", "ab", 1, first=50)
    train = open_data("imagefolder", root=tmp_path, preprocessing=PREPROCESSING).train
    with pytest.raises(DataError) as error:
        calibration_labels(train, [1, 0, 2])
    assert str(error.value) == (
        f"3 of 3 calibration images have no label, first {train.filename(1)}; this method trains with labels: give "
        "data.train as folders named by the classes that data.val has"
    )
