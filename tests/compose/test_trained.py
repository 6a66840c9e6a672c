"""The baselines that train, as runs of the whole command on the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.pipeline import run
from ptmq_lightning.report.record import read_results
from ptmq_lightning.runtime.errors import ConfigError

BASELINES = ["any_precision", "multiquant", "robustquant"]
TINY = [
    "data.val_images=100", "data.step_size_images=32", "data.calibration_images=64", "finetune.batch=16",
    "finetune.epochs=1", "bits.groups=[[w2a4],[w8a8]]", "bits.evaluate=[w2a4,w8a8]",
]  # fmt: skip
FAIR = [*TINY, "data.val_images=300", "data.calibration_images=512", "finetune.epochs=3"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the float digits network is trained once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(autouse=True)
def working_folder(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits)


def untrained(options: list[str]) -> list[str]:
    """Without the keys that only a training reads."""
    return [part for part in options if not part.startswith("finetune.")]


def rows(folder: Path) -> dict[str, dict[str, float]]:
    return {row["config"]: row for row in read_results(folder / "results.json")["rows"]}


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_leaves_the_same_record_as_every_method_and_its_costs(method: str, tmp_path: Path) -> None:
    run(configuration([*TINY, f"method={method}"]), tmp_path)
    results, costs = read_results(tmp_path / "results.json"), json.loads((tmp_path / "finetune.json").read_text())
    assert (results["method"], results["calibration_images"], list(rows(tmp_path))) == (method, 64, ["w2a4", "w8a8"])
    seconds = results["seconds"]
    fitted = seconds["fine-tune"] + seconds["reconstruct"] + seconds["tune"]
    assert fitted == pytest.approx(costs["seconds"])
    assert (costs["method"], costs["images"], costs["labels"], costs["epochs"]) == (method, 64, 64, 1)
    assert costs["stored_bytes"] == sum(file.stat().st_size for file in (tmp_path / "model").iterdir()) > 0
    assert set(costs["train_top1"]) == {"w2a4", "w8a8"}
    kind = {"any_precision": "kept per width", "multiquant": "re-estimated", "robustquant": "folded"}[method]
    assert (costs["statistics"]["kind"], costs["statistics"]["images"]) == (kind, 64 if kind == "re-estimated" else 0)


def test_other_methods_leave_no_costs_of_training(tmp_path: Path) -> None:
    run(configuration([*untrained(TINY), "rounding=nearest"]), tmp_path)
    assert not (tmp_path / "finetune.json").exists()


def test_the_same_seed_trains_the_same_tensors(tmp_path: Path) -> None:
    for name in ("one", "other"):
        run(configuration([*TINY, "method=multiquant"]), tmp_path / name)
    one, other = ((tmp_path / name / "model" / "trained.safetensors").read_bytes() for name in ("one", "other"))
    assert one == other


def test_a_network_trained_as_a_whole_takes_widths_per_layer(tmp_path: Path) -> None:
    mixed = ["allocate=greedy", "allocate.averages=[5]", "allocate.sensitivity_images=16"]
    run(configuration([*TINY, *mixed, "method=any_precision"]), tmp_path)
    assert 2 < rows(tmp_path)["mixed_5.0"]["w_bits"] <= 5


@pytest.mark.parametrize("trainer", [["trainer=ddp", "trainer.devices=1"], ["trainer=gpu", "trainer.devices=2"]])
def test_training_needs_one_process(trainer: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        configuration(["method=multiquant", *trainer])
    assert str(caught.value).endswith("may start several; set trainer=gpu or trainer=cpu, and 1 device")


def test_the_size_of_a_width_is_the_same_for_every_method(tmp_path: Path) -> None:
    for method in ("multiquant", "robustquant"):
        run(configuration([*TINY, f"method={method}"]), tmp_path / method)
    sizes = [
        {name: row["size_bytes"] for name, row in rows(tmp_path / m).items()} for m in ("multiquant", "robustquant")
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.slow
def test_training_improves_the_narrow_width_over_plain_nearest(tmp_path: Path) -> None:
    """Width 2 by nearest is near chance on this network; a method that trains it for three epochs is far above."""
    run(configuration([*untrained(FAIR), "method=rtn"]), tmp_path / "nearest")
    nearest = rows(tmp_path / "nearest")["w2a4"]
    for method in ("any_precision", "multiquant"):
        run(configuration([*FAIR, f"method={method}"]), tmp_path / method)
        trained = rows(tmp_path / method)
        assert trained["w2a4"]["top1"] > nearest["top1"] + 20, method
        assert trained["w8a8"]["top1"] > 90, method
