"""A picture becomes the tensor that timm's evaluation transform makes of it, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform

from ptmq_lightning.device.pictures import open_picture, preprocessing_of
from ptmq_lightning.runtime.decode import MODES
from ptmq_lightning.runtime.errors import ConfigError, DataError, ModelError
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(folder: Path, height: int, width: int, mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(folder / "picture.png")
    return folder / "picture.png"


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (36, 36), (50, 41), (41, 90), (20, 25)])
def test_the_pixels_are_those_of_timm(
    interpolation: str, crop_pct: float, crop_mode: str, size: tuple[int, int], tmp_path: Path
) -> None:
    options = replace(PREPROCESSING, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode)
    file = picture(tmp_path, *size)
    expected = create_transform(**asdict(options))(Image.open(file).convert("RGB"))
    assert torch.equal(open_picture(file, options), expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_color_modes_become_the_networks_channels(mode: str, tmp_path: Path) -> None:
    assert open_picture(picture(tmp_path, 40, 40, mode), PREPROCESSING).shape == (3, 32, 32)
    gray = replace(PREPROCESSING, input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    assert open_picture(picture(tmp_path, 40, 40, mode), gray).shape == (1, 32, 32)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'.*none\.png' \(FileNotFoundError"):
        open_picture(tmp_path / "none.png", PREPROCESSING)


def _enormous(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[18:26] = b"\xff\xff\xff\x00" * 2  # the size in a BMP's header
    file.write_bytes(data)


def _lettered(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"40 40", b"40 4x"))  # the size in a PPM's header


@pytest.mark.parametrize(
    ("suffix", "damage", "name"), [("bmp", _enormous, "DecompressionBombError"), ("ppm", _lettered, "ValueError")]
)
def test_a_damaged_picture_is_named(suffix: str, damage: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    file = tmp_path / f"picture.{suffix}"
    Image.open(picture(tmp_path, 40, 40)).save(file)
    damage(file)
    with pytest.raises(DataError, match=rf"'.*picture\.{suffix}' \({name}"):
        open_picture(file, PREPROCESSING)


def test_a_model_without_preprocessing_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected a Preprocessing in info\.preprocessing\. Set it before saving"):
        preprocessing_of(ModelInfo(input_size=(3, 32, 32)))


def test_a_crop_it_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        open_picture(picture(tmp_path, 40, 40), replace(PREPROCESSING, crop_mode="border"))
    assert "crop_mode='border'" in str(error.value) and "'center' or 'squash'" in str(error.value)


@pytest.mark.parametrize("input_size", [(3, 24, 40), (1, 40, 24), (4, 32, 32)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_other_shapes_and_channels_are_those_of_timm(
    input_size: tuple[int, int, int], crop_mode: str, tmp_path: Path
) -> None:
    channels = input_size[0]
    options = Preprocessing(input_size, (0.5,) * channels, (0.25,) * channels, crop_mode=crop_mode)
    file = picture(tmp_path, 50, 41)
    expected = create_transform(**vars(options))(Image.open(file).convert(MODES[channels]))
    assert torch.equal(open_picture(file, options), expected)


def test_a_picture_of_16_bits_is_scaled(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(values).save(tmp_path / "deep.png")
    gray = Preprocessing((1, 32, 32), (0.0,), (1.0,), crop_pct=1.0)
    found = open_picture(tmp_path / "deep.png", gray)[0]
    assert torch.allclose(found, torch.from_numpy(values / 65535.0).float(), atol=1 / 255)
