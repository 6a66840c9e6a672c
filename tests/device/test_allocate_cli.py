"""`ptmq allocate`: one command from an artifact and a folder of images to named assignments in the artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ptmq_lightning.allocate.prices import read_prices, table_text
from ptmq_lightning.allocate.sensitivity import free_layers
from ptmq_lightning.artifact import artifact
from ptmq_lightning.device import allocation, cli
from ptmq_lightning.evaluation.cost import size_bytes
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.preprocessing import Preprocessing
from tests.networks import images, small_model

PREPROCESSING = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = small_model()
    model.info = ModelInfo("small", preprocessing=PREPROCESSING)
    return artifact.save(model, tmp_path / "model")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    np.save(tmp_path / "noise.npy", images(16).numpy())
    return tmp_path / "noise.npy"


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def test_averages_and_sizes_become_named_assignments(
    folder: Path, noise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = size_bytes(model := artifact.load(folder), model.resolve("w5a5")) / 1e6
    assert ran(capsys, "allocate", folder, "--images", noise, "--avg-w", "3.5,4")[0] == 0
    code, out, err = ran(capsys, "allocate", folder, "--images", noise, "--size-mb", f"{whole:.6f}")
    assert (code, err) == (0, "")
    model = artifact.load(folder)
    assert list(model.assignments) == ["mixed_3.5", "mixed_4.0", size := f"size_{whole:g}mb"]
    assert model.assignments["mixed_3.5"].average(model)[0] <= 3.5
    assert size_bytes(model, model.assignments[size]) <= whole * 1e6
    model.switch("mixed_4.0")
    assert f"stored in {folder}: {size}" in out


def test_budgets_of_two_kinds_hold_together(folder: Path, noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--avg-w", "6,7", "--bit-ops", "0.004", "--activations", "free", "--search", "greedy")
    code, out, _ = ran(capsys, "allocate", folder, "--images", noise, *options)
    found = artifact.load(folder).assignments
    assert code == 0, out
    assert list(found) == ["mixed_6.0_bit_ops_0.004g", "mixed_7.0_bit_ops_0.004g"]


def test_the_front_is_a_table_a_figure_and_names(
    folder: Path, noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "allocate", folder, "--images", noise, "--front", "--out", tmp_path / "front")
    assert (code, err) == (0, "")
    record = json.loads((tmp_path / "front" / "front.json").read_text())
    for cost in ("size_bytes", "bit_ops"):
        mixed = [point for point in record["points"] if point["family"] == cost]
        assert mixed == sorted(mixed, key=lambda point: point[cost])
        harm = [point["divergence"] for point in mixed]
        assert harm == sorted(harm, reverse=True) and len(set(harm)) == len(harm)
    uniform = [point["config"] for point in record["points"] if point["family"] == "uniform"]
    assert uniform == ["w3a3", "w4a4", "w5a5", "w6a6", "w8a8"] and record["images"] == 16
    named = {point["config"] for point in record["points"]} - set(uniform)
    assert named == set(artifact.load(folder).assignments)
    table = (tmp_path / "front" / "front.md").read_text()
    assert all(f"| {name} |" in table for name in named) and "16 images" in table
    for picture in ("front.png", "sensitivity.png"):
        with Image.open(tmp_path / "front" / picture) as image:
            assert min(image.size) > 200
    harm_of = read_prices(tmp_path / "front" / "sensitivity.csv")
    assert list(harm_of) == free_layers(artifact.load(folder))


def test_a_table_of_prices_is_a_budget(
    folder: Path, noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = artifact.load(folder)
    pairs = [pair for pair in model.pairs if pair.w != 5]  # the target cannot do 5 bits
    table = {name: {pair: 100.0 * pair.w for pair in pairs} for name in free_layers(model)}
    (tmp_path / "cycles.csv").write_text(table_text(table))
    limit = 450 * len(table)
    asked = ("--prices", tmp_path / "cycles.csv", "--price-limit", limit)
    code, _, err = ran(capsys, "allocate", folder, "--images", noise, *asked)
    assert (code, err) == (0, "")
    chosen = artifact.load(folder).assignments[f"cycles_{limit}"]
    assert sum(table[name][chosen[name]] for name in table) <= limit
    assert ran(capsys, "allocate", folder, "--images", noise, *asked, "--price", "bytes")[0] == 2  # no such column


def test_a_drop_is_kept_on_the_images(folder: Path, noise: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, "allocate", folder, "--images", noise, "--max-drop", "12.5")
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if line.startswith("max_drop_12.5")).split()
    assert float(row[5]) >= 87.5


def test_swaps_share_their_time_among_the_tries_for_a_drop(
    folder: Path, noise: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def noted(problem: object, choice: object, divergence: object, seconds: float) -> object:
        given.append(seconds)
        return choice

    monkeypatch.setattr(allocation, "swap", noted)
    options = ("--max-drop", "25", "--swap-seconds", "20")
    assert ran(capsys, "allocate", folder, "--images", noise, *options)[0] == 0
    assert sum(given) == pytest.approx(20)


def test_labels_are_those_of_the_class_folders(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        place = tmp_path / "photos" / f"kind{number % 5}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    ask = ("allocate", folder, "--images", tmp_path / "photos", "--avg-w", "4")
    labelled = ran(capsys, *ask)[1]
    assert "no labels" not in labelled
    shutil.rmtree(tmp_path / "photos" / "kind0")  # four classes for five
    assert "no labels" in ran(capsys, *ask)[1]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "nothing is asked for"),
        (("--avg-w", "1.5"), "1.5 weight bits is below the narrowest possible, 3"),
        (("--size-mb", "0.0001"), "a size of 0.0001 MB"),
        (("--price-limit", "5"), "--prices"),
        (("--avg-w", "4", "--price", "cycles"), "--prices"),
        (("--avg-w", "4", "--search", "best"), "'best'"),
        (("--avg-w", "4", "--sensitivity", "guess"), "'guess'"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_named_and_nothing_is_stored(
    options: tuple[str, ...], named: str, folder: Path, noise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "allocate", folder, "--images", noise, *options)
    assert code == 2 and named in err
    assert artifact.load(folder).assignments == {}


@pytest.mark.parametrize("text", ["many", "-1", "3,", "inf"])
def test_numbers_that_are_none_are_refused(text: str, folder: Path, noise: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["allocate", str(folder), "--images", str(noise), f"--avg-w={text}"])


def test_swaps_take_their_time_and_keep_the_budget(
    folder: Path, noise: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(capsys, "allocate", folder, "--images", noise, "--avg-w", "4", "--swap-seconds", "0.3")[0] == 0
    model = artifact.load(folder)
    assert model.assignments["mixed_4.0"].average(model)[0] <= 4


def test_an_artifact_without_the_float_network_is_measured_against_its_widest_pair(
    folder: Path, noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = small_model(step_size=StepSize("nested"))
    place = artifact.save(model, tmp_path / "nested", "nested")
    assert ran(capsys, "allocate", place, "--images", noise, "--avg-w", "4")[0] == 0
    code, _, err = ran(capsys, "allocate", place, "--images", noise, "--avg-w", "4", "--sensitivity", "fisher")
    assert code == 1 and "divergence" in err
