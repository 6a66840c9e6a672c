"""`ptmq export` answers images and widths it cannot use with one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptmq_lightning.artifact import artifact
from ptmq_lightning.device import cli
from ptmq_lightning.device.export_cli import read_images, widths
from ptmq_lightning.runtime import extras
from ptmq_lightning.runtime.errors import ConfigError, DataError
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.preprocessing import Preprocessing
from tests.networks import small_model

PREPROCESSING = Preprocessing((3, 8, 8), (0.5,) * 3, (0.2,) * 3, "bilinear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small_model()
    model.info = ModelInfo("small", preprocessing=PREPROCESSING)
    return artifact.save(model, tmp_path_factory.mktemp("export_cli") / "model")


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    found = cli.main(["export", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (found, out) == (code, "")
    return err


def test_pictures_are_read_from_a_folder_of_folders_or_by_name(tmp_path: Path) -> None:
    for name in ("a/one.png", "b/two.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((20, 30, 3), 128, np.uint8)).save(tmp_path / name)
    assert read_images(tmp_path, PREPROCESSING, 5).shape == (2, 3, 8, 8)
    assert read_images(tmp_path / "a" / "one.png", PREPROCESSING, 5).shape == (1, 3, 8, 8)


def test_prepared_images_are_read_from_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 8, 8)))
    assert read_images(tmp_path / "x.npy", None, 3).shape == (3, 3, 8, 8)


@pytest.mark.parametrize("content", [None, b"no array", b""])
def test_an_array_that_cannot_be_read_is_one_line(
    content: bytes | None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "x.npy"
    if content is not None:
        place.write_bytes(content)
    why = {None: "FileNotFoundError", b"no array": "ValueError", b"": "EOFError"}[content]
    assert refused(capsys, folder, "--images", place) == (
        f"ptmq: cannot read images of '{place}' ({why}); expected a folder, tar or file of pictures, or a .npy file of "
        "preprocessed images (N, C, H, W).\n"
    )


def test_a_folder_without_pictures_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, folder, "--images", tmp_path) == (
        f"ptmq: cannot read images of '{tmp_path}' (no pictures in it); expected a folder, tar or file of pictures, or "
        "a .npy file of preprocessed images (N, C, H, W).\n"
    )


def test_pictures_for_a_model_without_preprocessing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_images(tmp_path, None, 5)
    assert "(the artifact has no preprocessing)" in str(caught.value)


def test_widths_are_numbers_pairs_or_names() -> None:
    assert widths("4,w4a8,mixed") == [4, "w4a8", "mixed"]
    assert widths(None) is None


def test_without_the_runtime_one_line_names_the_extra(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 8, 8)))
    assert refused(capsys, folder, "--images", tmp_path / "x.npy", "--out", tmp_path / "out") == (
        "ptmq: onnx and onnxruntime cannot be imported; expected the extra 'onnx': pip install "
        "'ptmq-lightning[onnx]'.\n"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 3, 16, 16), (3, 8, 8), ()])
def test_an_array_of_another_size_is_one_line(
    shape: tuple[int, ...], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(shape))
    assert refused(capsys, folder, "--images", tmp_path / "x.npy", "--count", 8, code=1) == (
        f"ptmq: found images of shape {shape or (1,)} in '{tmp_path / 'x.npy'}'; expected (N, 3, 8, 8), as the network "
        "takes them. Prepare them so.\n"
    )


def test_two_arrays_of_different_sizes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact.save(small_model(), tmp_path / "model")  # does not tell its size
    for edge in (8, 9):
        np.save(tmp_path / f"{edge}.npy", np.zeros((4, 3, edge, edge)))
    arrays = [tmp_path / f"{edge}.npy" for edge in (8, 9)]
    assert refused(capsys, tmp_path / "model", "--images", *arrays, code=1) == (
        f"ptmq: found images of shape (4, 3, 9, 9) in '{arrays[1]}'; expected (N, 3, 8, 8), as the network takes them. "
        "Prepare them so.\n"
    )


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_count_of_images_is_a_whole_number_from_1(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "DIR", "--images", "x.npy", f"--count={count}"])
    assert f"found {count!r}; expected a whole number from 1" in capsys.readouterr().err


def test_a_picture_that_cannot_be_decoded_is_named_and_not_replaced_by_its_neighbor(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"cannot read '.*: 1\.png'"):
        read_images(tmp_path, PREPROCESSING, 3)


def test_a_broken_tar_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    with pytest.raises(ConfigError, match=r"cannot read images of '.*broken\.tar' \(ReadError\)"):
        read_images(tmp_path / "broken.tar", PREPROCESSING, 3)
