"""The command says what an artifact is, and what is wrong with it, in lines that a person can read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS
from ptmq_lightning.artifact.tensors import label
from ptmq_lightning.device import bench_cli, cli
from ptmq_lightning.device.pictures import open_picture
from ptmq_lightning.runtime.info import Evaluation, ModelInfo, Row
from ptmq_lightning.runtime.preprocessing import Preprocessing
from ptmq_lightning.runtime.sealed import digest
from tests.networks import small_model

PREPROCESSING = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear")
ROW = Row("w4a4", 4, 4, 61.5, None, 75.25, 9.5, 0.1, 100, 10**6)
INFO = ModelInfo(
    "small", "random weights", preprocessing=PREPROCESSING, data="cifar10",
    accuracy=Evaluation({"top1": 70.0, "top5": None}, [ROW], 200),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small_model()
    model.info = INFO
    model.assignments["mixed"] = model.resolve("w4a8")
    return artifact.save(model, tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def ran(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    return (code, *capsys.readouterr())


def test_info_tells_sizes_widths_and_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, "info", folder, "--layers")
    sizes = [(folder / name).stat().st_size for name in (TENSORS, MANIFEST)]
    assert (code, err) == (0, "")
    assert "network   small (random weights)\n" in out
    assert f"size      {sum(sizes):,} bytes (model.safetensors {sizes[0]:,}, manifest.json {sizes[1]:,}), " in out
    assert "packing   latent, with the float network; format 3\n" in out
    assert "widths    w3a3 w4a4 w5a5 w6a6 w8a8\n" in out and "named     mixed\n" in out
    assert "accuracy  on 200 images of cifar10, percent\n" in out
    assert "      w4a4   61.50       -   75.25\n" in out
    assert "layer1.0.conv1                   conv    8x8x3x3              11  -\n" in out
    assert "fc                               linear  5x8                  11  w8a8\n" in out


def test_info_without_figures_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.artifact.tiny import tiny_model

    code, out, _ = ran(capsys, "info", artifact.save(tiny_model(), tmp_path / "tiny", "nested"))
    assert code == 0 and "accuracy  not stored" in out and "network   unnamed (source unknown)" in out
    assert "packing   nested, without the float network" in out


def test_predict_names_the_best_classes(folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, "predict", folder, picture, picture, "--bits", "4", "--top", 2)
    model = artifact.load(folder)
    model.switch(4)
    with torch.no_grad():
        shares = model(open_picture(picture, PREPROCESSING).unsqueeze(0)).softmax(1)[0]
    first, second = shares.argsort(descending=True)[:2].tolist()
    line = f"{picture}: class {first} {100 * shares[first]:.1f} %, class {second} {100 * shares[second]:.1f} %\n"
    assert (code, out, err) == (0, 2 * line, "")


@pytest.mark.parametrize("bits", ["w4a8", "mixed"])
def test_predict_takes_pairs_and_named_assignments(
    bits: str, folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ran(capsys, "predict", folder, picture, "--bits", bits)[0] == 0


def test_bench_times_every_width(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, "bench", folder, "--rounds", 2, "--batch", 2)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "batch 2, 1 threads, medians of 2 interleaved rounds"
    assert [line.split()[0] for line in lines[1:8]] == ["float", "w3a3", "w4a4", "w5a5", "w6a6", "w8a8", "mixed"]
    assert lines[8].startswith("switch of the whole model: warm ") and lines[9].startswith("memory: ")


def test_bench_times_exports_in_the_same_table(folder: Path, tmp_path: Path) -> None:
    """In a process of its own, as ONNX Runtime has to be."""
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32))
    forms = {form: str(tmp_path / form) for form in ("static", "switchable")}
    common = [str(folder), "--images", str(images), "--bits", "w8a8,mixed"]
    commands = [["export", *common, "--form", form, "--out", out] for form, out in forms.items()]
    options = [option for out in forms.values() for option in ("--export", out)]
    commands.append(["bench", str(folder), "--rounds", "2", "--batch", "2", *options])
    program = f"from ptmq_lightning.device.cli import main; assert not any(map(main, {commands!r}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    lines = done.stdout.split("interleaved rounds\n")[1].splitlines()
    rows = [line.split(" ms")[0].split()[:-1] for line in lines[:11]]
    eager = [[name, "PyTorch"] for name in ("float", "w3a3", "w4a4", "w5a5", "w6a6", "w8a8", "mixed")]
    assert rows == eager + [[name, "onnx", out] for out in forms.values() for name in ("w8a8", "mixed")]
    assert lines[11].startswith("switch of the whole model: ")


def test_bench_refuses_an_export_of_other_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        def __init__(self, *arguments: object) -> None: ...

        info = ModelInfo(input_size=(3, 9, 9))

    monkeypatch.setattr(bench_cli, "Session", Other)
    code, _, err = ran(capsys, "bench", folder, "--export", tmp_path)
    assert code == 2
    assert err == (
        f"ptmq: '{tmp_path}' takes images of 3 x 9 x 9, the model of 3 x 8 x 8; expected an export of this model. "
        f"Export it again: ptmq export {folder}.\n"
    )


def test_verify_passes_a_sound_artifact(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = ran(capsys, "verify", folder)
    assert (code, err) == (0, "")
    assert [line[:3] for line in out.splitlines()] == ["ok "] * 4


def forged(folder: Path, place: Path, name: str, value: float) -> Path:
    """The same artifact with one value of one tensor changed and its hashes made right again."""
    import safetensors.torch

    place.mkdir()
    tensors = safetensors.torch.load_file(folder / TENSORS)
    tensors[name].view(-1)[0] = value
    safetensors.torch.save_file(tensors, place / TENSORS)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["tensors"][name] = label(tensors[name])
    manifest["sha256"] = digest(manifest)
    (place / MANIFEST).write_text(json.dumps(manifest))
    return place


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "blocks.1.layer1.0.conv1.weight.steps",
            -1.0,
            "layer 'layer1.0.conv1' has a step size of -1.0 at 3 bits; expected positive numbers. Save the model "
            "again.",
        ),
        (
            "blocks.1.quantizers.layer1_0_conv1.zero_points",
            8.0,
            "at 3 bits; expected a positive step size and a whole number from 0 to 7. Save the model again.",
        ),
        (
            "blocks.0.conv1.bias",
            float("nan"),
            "'blocks.0.conv1.bias' holds numbers that are not finite; expected finite ones. Save the model again.",
        ),
    ],
)
@pytest.mark.parametrize("command", ["verify", "bench"])
def test_numbers_that_nothing_can_be_computed_with_are_refused_at_load(
    command: str, name: str, value: float, says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = forged(folder, tmp_path / "forged", name, value)
    code, _, err = ran(capsys, command, place)
    assert code == 1 and err.startswith(f"ptmq: cannot load '{place}': ") and err.endswith(f"{says}\n")


def test_a_damaged_artifact_is_one_line_and_exit_code_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("info", "verify", "bench"):
        code, out, err = ran(capsys, command, tmp_path / "nothing")
        assert (code, out) == (1, "")
        assert err == (
            f"ptmq: cannot load '{tmp_path / 'nothing'}': found no manifest.json; expected manifest.json and "
            "model.safetensors. There is no such folder: give the one that save() wrote, in a run's folder model/.\n"
        )


def damaged(folder: Path, place: Path, **parts: object) -> Path:
    """A copy whose manifest has these parts, or not at all where they are None, and the hash of that."""
    shutil.copytree(folder, place)
    manifest = json.loads((place / MANIFEST).read_text()) | parts
    manifest = {key: value for key, value in manifest.items() if value is not None}
    (place / MANIFEST).write_text(json.dumps(manifest | {"sha256": digest(manifest)}))
    return place


@pytest.mark.parametrize("command", ["info", "verify", "bench"])
def test_a_truncated_artifact_is_refused_by_every_command(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = damaged(folder, tmp_path / "short")
    (place / TENSORS).write_bytes((place / TENSORS).read_bytes()[:-1])
    code, out, err = ran(capsys, command, place)
    assert (code, out) == (1, "")
    assert err.startswith(f"ptmq: cannot load '{place}': model.safetensors is truncated or no safetensors file (")


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_manifest_that_lacks_a_part_is_one_line(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = damaged(folder, tmp_path / "bare", info=None)
    code, out, err = ran(capsys, command, place)
    assert (code, out) == (1, "")
    assert err.startswith(f"ptmq: cannot load '{place}': manifest.json describes no network: info is None ")


def test_info_of_what_is_no_network_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = damaged(folder, tmp_path / "odd", blocks=[{"modules": {"fc": {"weight": {}}}}])
    code, _, err = ran(capsys, "info", place)
    assert code == 1
    assert err.startswith(f"ptmq: cannot load '{place}': manifest.json describes no network: blocks[0] lacks name, ")


def test_a_file_that_is_no_picture_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    code, _, err = ran(capsys, "predict", folder, tmp_path / "text.jpg")
    assert code == 1
    assert (
        err.startswith(f"ptmq: cannot read '{tmp_path / 'text.jpg'}' (UnidentifiedImageError") and err.count("\n") == 1
    )


def test_a_width_the_model_has_not_is_a_wrong_use(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "predict", folder, picture, "--bits", 7)
    assert code == 2 and err.startswith("ptmq: the input of layer1.0.conv1 has no width of 7 bits; ")


@pytest.mark.parametrize("arguments", [[], ["info"], ["frob", "x"], ["bench", "x", "--batch", "0"]])
def test_a_wrong_command_is_answered_with_its_use(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2 and "usage: ptmq" in capsys.readouterr().err


def test_the_command_alone_and_help_show_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in (([], 2), (["help"], 0)):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        said = capsys.readouterr()
        assert stop.value.code == code and all(f"    {name} " in said.out + said.err for name in cli.COMMANDS)


def test_a_folder_that_is_no_artifact_is_told_apart_by_what_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "run" / "model")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "export.json").write_text("{}")
    for name, cure in (
        ("run", f"give '{tmp_path / 'run' / 'model'}'"),
        ("export", "an export"),
        ("no", "no such folder"),
    ):
        code, _, err = ran(capsys, "info", tmp_path / name)
        assert code == 1 and cure in err


def test_the_command_loads_no_training_library(folder: Path, picture: Path) -> None:
    program = (
        "import sys; from ptmq_lightning.device.cli import main\n"
        f"code = main(['predict', {str(folder)!r}, {str(picture)!r}])\n"
        "sys.exit(code or sorted({'timm', 'lightning', 'hydra', 'torchvision', 'matplotlib'} & set(sys.modules)) != [])"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("arguments", [["info", "DIR"], ["info", "DIR", "--layers"], ["--help"], ["--version"]])
def test_looking_at_an_artifact_loads_no_torch(arguments: list[str], folder: Path) -> None:
    given = [str(folder) if argument == "DIR" else argument for argument in arguments]
    assert loads_torch(given) is False


def test_a_command_that_runs_the_network_does_load_torch(folder: Path) -> None:
    """The test before could fail."""
    assert loads_torch(["verify", str(folder)]) is True


def loads_torch(arguments: list[str]) -> bool:
    program = (
        "import sys; from ptmq_lightning.device.cli import main\n"
        f"try: code = main({arguments!r})\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert not code\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1] == "True"


CLASSES = ("ant", "bee", "cat", "", "Käfer\x1b[2J")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small_model()
    model.info = replace(INFO, classes=CLASSES)
    return artifact.save(model, tmp_path_factory.mktemp("named") / "model")


def test_predict_names_the_classes_where_the_model_knows_them(
    named: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(capsys, "predict", named, picture, "--top", 5)
    assert code == 0 and all(f" {name} " in out for name in ("ant", "bee", "cat", "class 3"))
    assert " Käfer\\x1b[2J " in out  # what would clear the screen is shown instead


def test_predict_gives_json_with_index_name_and_share(
    named: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(capsys, "predict", named, picture, picture, "--top", 5, "--json")
    first, second = map(json.loads, out.splitlines())
    assert code == 0 and first == second and first["image"] == str(picture)
    assert {found["index"]: found["name"] for found in first["classes"]} == dict(enumerate(CLASSES)) | {3: None}
    assert sum(found["share"] for found in first["classes"]) == pytest.approx(1, abs=1e-5)


def test_predict_takes_folders_at_any_depth(
    named: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [tmp_path / "all" / part for part in ("b=1/x y.png", "a/deep/Ä.PNG", ".hidden/no.png", "a/.no.png")]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)
    (tmp_path / "all" / "notes.txt").write_text("no picture")
    code, out, _ = ran(capsys, "predict", named, tmp_path / "all")
    assert code == 0 and [line.split(": ")[0] for line in out.splitlines()] == [str(places[1]), str(places[0])]


@pytest.mark.parametrize(("place", "says"), [("nothing", "there is no "), ("empty", "holds no pictures")])
def test_predict_names_a_path_without_pictures(
    place: str, says: str, named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = ran(capsys, "predict", named, tmp_path / place)
    assert (code, out) == (1, "") and says in err and str(tmp_path / place) in err and err.count("\n") == 1


def test_info_counts_the_classes(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "classes   5: ant, bee, cat, ...\n" in ran(capsys, "info", named)[1]
