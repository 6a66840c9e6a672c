"""The whole command on the embedded digits: what it leaves behind, and what a killed run needs to be continued."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ptmq_lightning.allocate.prices import read_prices
from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.folder import RunFolder
from ptmq_lightning.compose.learning import WHOLE
from ptmq_lightning.compose.pipeline import run
from ptmq_lightning.models.zoo import build
from ptmq_lightning.report.record import read_results
from ptmq_lightning.runtime.errors import ConfigError, DataError, ModelError, PTMQError
from ptmq_lightning.runtime.layers import WeightLayer
from ptmq_lightning.runtime.model import MultiBitModel, weights_of

TINY = [
    "recon=smoke", "recon.iters=3", "recon.log_every=1", "data.val_images=50", "data.step_size_images=32",
    "bits.groups=[[w3a3,w4a4],[w8a8]]", "bits.extra=[w2a4]", "bits.evaluate=[w2a4,w3a3,w4a4,w8a8]",
]  # fmt: skip


NEAREST = [*(key for key in TINY if not key.startswith("recon.")), "rounding=nearest"]  # nothing is learned


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which the float digits network is trained once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(autouse=True)
def working_folder(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(digits)


def model_bytes(folder: Path) -> dict[str, bytes]:
    found = {file.name: file.read_bytes() for file in sorted((folder / "model").iterdir())}
    assert found, "two empty folders would be equal"
    return found


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def killed_after(block: int, folder: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until ``block`` is finished and kept, and then no further."""
    with monkeypatch.context() as patch:
        keep = RunFolder.keep

        def kill(self: RunFolder, model: Any, index: int, result: Any) -> None:
            keep(self, model, index, result)
            if index == block:
                raise Killed

        patch.setattr(RunFolder, "keep", kill)
        with pytest.raises(Killed):
            run(configuration(overrides), folder)


@pytest.fixture(scope="module")
def whole(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one complete run, whose log says all that the command's does. Not to be changed: see `copied`."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(digits)
        patch.setattr(logging.getLogger(), "level", logging.INFO)
        run(configuration(TINY), folder)
    return folder


def test_a_run_leaves_its_record(whole: Path) -> None:
    names = {"config.yaml", "results.json", "metrics.csv", "layers.csv", "calibration.json", "model", "report.html"}
    names |= {"train.log", "inputs.json", "details.json", ".ptmq-run"}
    assert {item.name for item in whole.iterdir()} == names


def test_the_model_knows_the_names_of_its_classes(whole: Path) -> None:
    assert artifact.load(whole / "model").info.classes == tuple("0123456789")


def test_results_have_a_row_for_every_pair_to_evaluate(whole: Path) -> None:
    results = read_results(whole / "results.json")
    assert [row["config"] for row in results["rows"]] == ["w2a4", "w3a3", "w4a4", "w8a8"]
    assert (results["model"], results["data"], results["method"]) == ("digits_resnet", "digits", "ptmq")
    assert (results["calibration_images"], results["evaluation_images"]) == (64, 50)


def test_the_saved_configuration_is_resolved_and_complete(whole: Path) -> None:
    saved = yaml.safe_load((whole / "config.yaml").read_text())
    assert saved["recon"]["iters"] == 3
    assert saved["mixer"]["name"] == configuration(TINY).mixer.name


def test_metrics_hold_each_blocks_losses_against_a_step_that_only_grows(whole: Path) -> None:
    lines = metrics(whole)
    steps = [int(line["iter"]) for line in lines if line["block_name"] != WHOLE]
    blocks = len({line["block"] for line in lines}) - 1
    assert steps == list(range(3 * blocks))
    assert all(any(line[f"loss/w{b}a{b}"] for b in (3, 4, 8)) for line in lines)
    last = [int(line["iter"]) for line in lines if line["block_name"] == WHOLE]  # each iteration runs at one pair
    assert last == [3 * blocks + 2 * turn + 1 for turn in range(3)]


def test_the_regularizer_is_zero_in_every_block_until_its_warmup_is_over(whole: Path) -> None:
    found = [(line["block"], int(line["iter"]) % 3, float(line["loss/rounding"] or 0) > 0) for line in metrics(whole)]
    soft = {block for block, _, pulled in found if pulled}  # stem and head are pinned to 8 bits, which have no plane
    assert len(soft) == 3
    counts = {(iteration, pulled) for block, iteration, pulled in found if block in soft}
    assert counts == {(0, False), (1, True), (2, True)}  # a fifth of three iterations: the first of each block


def test_the_model_is_saved_without_pickle(whole: Path) -> None:
    assert {file.suffix for file in (whole / "model").iterdir()} == {".safetensors", ".json"}


def test_the_same_seed_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    run(configuration(TINY), tmp_path)
    assert model_bytes(tmp_path) == model_bytes(whole)


def test_a_killed_run_resumes_to_the_same_bytes(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_after(1, tmp_path, TINY, monkeypatch)
    run(configuration([*TINY, "resume=true"]), tmp_path)
    assert model_bytes(tmp_path) == model_bytes(whole)
    assert metrics(tmp_path) == metrics(whole)
    assert not (tmp_path / "resume").exists()


@pytest.mark.parametrize("method", ["brecq", "adaround", "flexround"])
def test_a_killed_run_of_several_passes_or_units_resumes_to_the_same_bytes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*TINY[:5], f"method={method}", "bits=w3a3"]
    run(configuration(options), tmp_path / "whole")
    blocks = len({line["block_name"] for line in metrics(tmp_path / "whole")}) if method == "brecq" else 0
    killed_after(blocks + 1, tmp_path / "killed", options, monkeypatch)  # of brecq: within the second pass
    run(configuration([*options, "resume=true"]), tmp_path / "killed")
    assert model_bytes(tmp_path / "killed") == model_bytes(tmp_path / "whole")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")


def test_a_half_fitted_block_is_fitted_again(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_after(1, tmp_path, TINY, monkeypatch)
    (
        tmp_path / "unfinished" / "resume" / "block_001.json"
    ).unlink()  # the kill came between a block's tensors and its record
    with (tmp_path / "unfinished" / "metrics.csv").open("a") as file:
        file.write("7,2,half a li")
    run(configuration([*TINY, "resume=true"]), tmp_path)
    assert model_bytes(tmp_path) == model_bytes(whole)
    assert metrics(tmp_path) == metrics(whole)


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A complete run that a test may do anything with."""
    return Path(shutil.copytree(whole, tmp_path / "copied"))


def test_a_complete_run_is_not_run_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def no_stage(*_: object) -> None:
        raise AssertionError("a stage was run")

    monkeypatch.setattr(pipeline, "build", no_stage)
    figure = pipeline.figure(configuration(TINY), read_results(copied / "results.json")["rows"])
    assert run(configuration([*TINY, "resume=true"]), copied) == figure


@pytest.mark.parametrize("complete", [False, True])
def test_resume_refuses_another_configuration(
    complete: bool, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied if complete else tmp_path / "killed"
    if not complete:
        killed_after(0, folder, TINY, monkeypatch)
    with pytest.raises(ConfigError) as caught:
        run(configuration([*TINY, "seed=1", "recon.iters=4", "resume=true"]), folder)
    assert str(caught.value) == (
        f"resume=true, but the run in {folder} had another configuration: recon.iters was 3, now 4, seed was 0, "
        "now 1; give the same command again, or start afresh with resume=false"
    )


def test_without_resume_nothing_of_an_earlier_run_is_left(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(1, tmp_path, [*TINY, "seed=5"], monkeypatch)
    (tmp_path / "notes.txt").write_text("not ours")
    run(configuration(TINY), tmp_path)
    assert model_bytes(tmp_path) == model_bytes(whole)
    assert metrics(tmp_path) == metrics(whole)
    assert {item.name for item in tmp_path.iterdir()} == {item.name for item in whole.iterdir()} | {"notes.txt"}


def test_mixed_widths_are_chosen_evaluated_and_listed_per_layer(tmp_path: Path) -> None:
    run(configuration([*TINY, "bits=mixed", "allocate.averages=[4,5]", "allocate.sensitivity_images=16"]), tmp_path)
    rows = {row["config"]: row for row in read_results(tmp_path / "results.json")["rows"]}
    assert rows["mixed_4.0"]["w_bits"] <= 4 < rows["mixed_5.0"]["w_bits"] <= 5
    header = (tmp_path / "layers.csv").read_text().splitlines()[0]
    assert "mixed_4.0,mixed_5.0" in header
    harm = read_prices(tmp_path / "sensitivity.csv")
    assert len(next(iter(harm.values()))) == 4 and (tmp_path / "sensitivity.png").exists()


def test_the_smallest_model_within_a_drop_is_named_in_a_run(tmp_path: Path) -> None:
    asked = ["allocate=milp", "allocate.max_drop=10", "allocate.size_mb=[1]", "allocate.swap_images=32"]
    run(configuration([*TINY, *asked, "allocate.swap_seconds=0.1", "allocate.activations=free"]), tmp_path)
    assert list(artifact.load(tmp_path / "model").assignments) == ["size_1mb", "max_drop_10"]


def decided(model: MultiBitModel) -> dict[str, Any]:
    """What options decide about a model; octaves: whether its weight steps are powers of two apart."""
    weights = [weight for _, weight in weights_of(model) if len(weight.widths) > 1]
    layers = [layer for layer in model.modules() if isinstance(layer, WeightLayer)]
    return {
        "rounding": {(weight.kind, len(weight.rounding)) for weight in weights},
        "octaves": all(bool(((w.steps / w.steps[-1]).frexp().mantissa == 0.5).all()) for w in weights),
        "pins": {layer.pin_w for layer in model.layers.values()},
        "corrected": {layer.biases is not None for layer in layers},
        "pairs": [str(pair) for pair in model.pairs],
    }


DEFAULT = {
    "rounding": {("planes", 3)}, "octaves": False, "pins": {None, 8}, "corrected": {True},
    "pairs": ["w3a3", "w4a4", "w8a8", "w2a4"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("options", "change"),
    [([], {}),
     (["method=ptmq_paper"], {"rounding": {("planes", 1)}, "corrected": {False}}),
     (["rounding=offset", "mixer=case1"], {"rounding": {("offset", 1)}}),
     (["rounding=per_width", "loss=gd_chain"], {"rounding": {("planes", 4)}}),
     (["rounding=nearest", "step_size=power_of_two", "tune.iters=0"], {"rounding": {("nearest", 0)}, "octaves": True}),
     (["loss=mse", "mixer=case2", "placement.edge=none", "method.bias_correction=none", "tune.iters=0"],
      {"pins": {None}, "corrected": {False}}),
     (["loss=aph", "method.bias_correction=after"], {}),
     (["bits=vit", "bits.groups=[[w4a6],[w8a8]]", "bits.evaluate=[w4a6,w8a8]", "mixer=none"],
      {"rounding": {("planes", 2)}, "pairs": ["w4a6", "w8a8", "w2a4"]})],
)  # fmt: skip
def test_methods_and_options_make_their_model_and_its_artifact_gives_the_same_rows(
    options: list[str], change: dict[str, Any], tmp_path: Path
) -> None:
    learns = "rounding=nearest" not in options
    config = configuration([*(part for part in TINY if learns or not part.startswith("recon.")), *options])
    run(config, tmp_path)
    rows = read_results(tmp_path / "results.json")["rows"]
    network, model = pipeline.build(config.model), artifact.load(tmp_path / "model")
    sources, _ = pipeline.load(config, network, *pipeline.find(config))
    assert [asdict(row) for row in pipeline.measure(model, sources, config, network.module).rows] == rows
    assert next(row["agreement"] for row in rows if row["config"] == "w8a8") >= 98  # all but one of 50 images
    assert decided(model) == DEFAULT | change


def test_the_log_names_every_stage_and_the_size_of_the_feature_cache(whole: Path) -> None:
    text = (whole / "train.log").read_text()
    for stage in "build", "data", "fold and cut", "insert", "calibrate", "reconstruct", "tune", "evaluate", "save":
        assert re.search(rf"\b{stage}: .* s$", text, re.MULTILINE), stage
    assert "fine-tune: " not in text and "allocate: " not in text, "nothing was done there"
    assert "feature cache: " in text
    assert re.search(r"\bblock 1/.*iter 3/3", text)


def test_without_images_a_run_stops_with_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run(configuration(["model=resnet18", "model.pretrained=false", "data=imagenet"]), tmp_path)
    assert str(caught.value).startswith("data=imagenet: data.train is not set; data.val is not set. Set data.root=DIR ")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["model=resnet18", "data=imagefolder", "data.root=nowhere"], "data.root=nowhere"),
        (["model=resnet18"], "data=digits has 10 classes, but resnet18 tells 1000 apart"),
        (["model.num_classes=7"], "data=digits has 10 classes, but digits_resnet tells 7 apart"),
        (["model=resnet18", "model.num_classes=10", "model.checkpoint=nothing.pt"], "no checkpoint at 'nothing.pt'"),
        (["model=resnet18", "model.num_classes=10", "model.checkpoint=damaged.pt"], "the checkpoint 'damaged.pt'"),
        (["data.calibration_images=2000"], "data.calibration_images=2000, but"),
    ],
)
def test_what_is_cheap_to_know_is_known_before_a_network_is_built_or_downloaded(
    given: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.pt").write_bytes(b"PK no checkpoint")
    monkeypatch.setattr(pipeline.zoo, "_create", lambda *_: pytest.fail("a network was built"))
    monkeypatch.setattr(pipeline, "train_digits", lambda *_: pytest.fail("a network was trained"))
    with pytest.raises(PTMQError) as caught:
        run(configuration(given), tmp_path / "run")
    assert says in str(caught.value)


def test_a_value_that_a_room_refuses_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "build", lambda _: pytest.fail("a network was built"))
    with pytest.raises(ConfigError) as caught:
        run(configuration([*TINY, "mixer.weights=[1,1]"]), tmp_path / "run")
    assert str(caught.value) == "found mixer.weights=[1.0, 1.0] with sum 2; expected sum 1."
    assert not (tmp_path / "run").exists()


def test_without_weights_a_run_stops_with_one_message(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        run(configuration(["model=cifar_resnet20"]), tmp_path)
    assert "Set model.checkpoint=FILE to read local weights, or model.pretrained=false" in str(caught.value)


def test_images_of_more_classes_than_the_network_has_are_refused_at_once(tmp_path: Path) -> None:
    overrides = ["model=cifar_resnet20", "model.pretrained=false", "model.num_classes=4"]
    with pytest.raises(DataError) as caught:
        run(configuration([*TINY, *overrides]), tmp_path)
    assert str(caught.value) == (
        "data=digits has 10 classes, but cifar_resnet20 tells 4 apart; choose images of the network's own classes "
        "(data=imagenet data.root=DIR), number the folders of some of them with data.class_map=FILE, or set "
        "model.num_classes and a model.checkpoint that fits"
    )


def test_a_trained_network_refuses_images_of_fewer_classes_that_nobody_numbered(tmp_path: Path) -> None:
    network = build("cifar_resnet20", pretrained=False, num_classes=12)
    save_file(network.module.state_dict(), tmp_path / "weights.safetensors")
    own = ["model=cifar_resnet20", "model.num_classes=12", f"model.checkpoint={tmp_path / 'weights.safetensors'}"]
    with pytest.raises(DataError) as caught:
        run(configuration([*TINY, *own]), tmp_path / "run")
    assert str(caught.value).startswith("data=digits has 10 classes, but cifar_resnet20 tells 12 apart; choose images")


def test_a_trainer_that_cannot_be_is_refused_before_an_earlier_run_is_replaced(copied: Path) -> None:
    before = (copied / "results.json").read_bytes()
    with pytest.raises(ConfigError) as caught:
        run(configuration([*TINY, "trainer.devices=0"]), copied)
    assert str(caught.value).startswith("the trainer cannot be made: ")
    assert (copied / "results.json").read_bytes() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_gpu_trainer_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(configuration([*TINY, "trainer=gpu"]), tmp_path)
    assert str(caught.value) == "trainer.accelerator=gpu, but torch finds no GPU here; set trainer=cpu"


def test_threads_follow_the_configuration(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        run(configuration([*NEAREST, "trainer.threads=1"]), tmp_path)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_calibration_indices_are_saved_and_follow_the_seed(whole: Path, tmp_path: Path) -> None:
    run(configuration([*NEAREST, "seed=1"]), tmp_path)
    first, second = (json.loads((folder / "calibration.json").read_text())["indices"] for folder in (whole, tmp_path))
    assert len(first) == len(second) == 64
    assert first != second
