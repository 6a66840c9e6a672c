"""What is saved is what is loaded, and nothing that was damaged or altered gets through."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.fields import bits_per_weight
from ptmq_lightning.quant.roundings import ROUNDINGS, RoundingKeys
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.reconstruction.commit import make_trainable
from ptmq_lightning.runtime.errors import ArtifactError, ConfigError, ModelError, PTMQError
from ptmq_lightning.runtime.info import Evaluation, ModelInfo, Row
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, weights_of
from ptmq_lightning.runtime.preprocessing import Preprocessing
from ptmq_lightning.runtime.sealed import digest
from ptmq_lightning.runtime.spec import BitAssignment, BitGroups, BitWidth
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.networks import RECIPE, images, small_model

INFO = ModelInfo(
    "small", "random weights", preprocessing=Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3), data="cifar10",
    groups=BitGroups.of([["w3a3", "w4a4"], [8]]), classes=("cat", "dog"),
    accuracy=Evaluation({"top1": 70.0, "top5": None}, [Row("w4a4", 4, 4, 61.5, None, 75.0, 9.5, 0.1, 100, 10**6)], 200),
)  # fmt: skip
KINDS = {
    "nearest": None,
    "shared": RoundingKeys("shared"),
    "offset": RoundingKeys("offset"),
    "per_group": RoundingKeys("per_group", [[3], [4, 5, 6, 8]]),
    "per_width": RoundingKeys("per_width"),
    "ste": RoundingKeys("ste"),
    "flexround": RoundingKeys("flexround"),
}


@functools.cache
def base(step_size: str) -> MultiBitModel:
    """Rounded to nearest; making it anew for every test would cost seconds."""
    return small_model(step_size=StepSize(step_size))


def committed(kind: str, step_size: str = "free", kinds: Mapping[str, RoundingKeys | None] = KINDS) -> MultiBitModel:
    """A model whose rounding is random."""
    model, how = copy.deepcopy(base(step_size)), kinds[kind]
    torch.manual_seed(4)
    for block in model.blocks:
        for name, weight in list(weights_of(block)):
            if how is not None:
                trainable = ROUNDINGS[kind](weight, how, learn_step_sizes=True)
                for parameter in trainable.parameters():
                    torch.nn.init.normal_(parameter)
                block.get_submodule(name).weight = trainable.committed()
    model.assignments["mine"] = BitAssignment(
        tuple((n, BitWidth(8, 8) if n.endswith("conv2") else w) for n, w in model.resolve(4).items())
    )
    model.info = INFO
    return model


def test_biases_of_every_width_come_back_and_others_are_refused(tmp_path: Path) -> None:
    model = committed("nearest")
    name, weight = next(iter(weights_of(model.blocks[0])))
    layer: Any = model.blocks[0].get_submodule(name)
    layer.biases = torch.randn(weight.steps.shape)
    again = artifact.load(artifact.save(model, tmp_path / "model"))
    assert torch.equal(again.blocks[0].get_submodule(name).biases, layer.biases)  # type: ignore[arg-type]
    layer.biases = layer.biases[:, :-1].clone()
    with pytest.raises(ArtifactError, match=r"has biases of shape"):  # what is written is read back at once
        artifact.save(model, tmp_path / "odd")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return artifact.save(committed("per_group"), tmp_path / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_bitwise_the_same_after_loading(kind: str, tmp_path: Path) -> None:
    model, x = committed(kind), images()
    loaded = artifact.load(artifact.save(model, tmp_path / "model"))
    for which in (3, 4, "w5a5", "w6a6", 8, "mine", None):
        with at_bits(model, which), at_bits(loaded, which), torch.no_grad():
            assert torch.equal(loaded(x), model(x)), which


def test_tables_and_info_travel_with_the_model(saved: Path) -> None:
    model, loaded = committed("per_group"), artifact.load(saved)
    assert loaded.layers == model.layers and loaded.pairs == model.pairs
    assert loaded.assignments == model.assignments and loaded.info == model.info
    assert loaded.block_names == model.block_names


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("nearest", 11), ("shared", 12), ("per_group", 13), ("per_width", 16), ("offset", 16), ("ste", 27)],
)
def test_a_latent_weight_takes_eleven_bits_and_its_rounding(kind: str, bits: int, tmp_path: Path) -> None:
    saved = artifact.save(committed(kind), tmp_path / "model")
    manifest = json.loads((saved / artifact.MANIFEST).read_text())
    start, count = "blocks.1.layer1.0.conv1.weight.", 8 * 8 * 3 * 3
    stored = [manifest["tensors"].get(start + name, {"shape": [0]})["shape"][0] for name in ("latent", "rounding")]
    assert 8 * sum(stored) == bits * count


NESTED = "nested"
NESTED_PLANES = {
    "nearest": None,
    "shared": RoundingKeys("shared"),
    "per_group": RoundingKeys("per_group", [[3, 4], [5, 6, 8]]),
}


@pytest.mark.parametrize(
    ("packing", "kind", "bits"),
    [("nested", "shared", 9), ("nested", "per_group", 10), ("nested", "nearest", 9), ("auto", "shared", 9)],
)
def test_nested_codes_and_logits_are_bitwise_the_same_after_loading(
    packing: str, kind: str, bits: int, tmp_path: Path
) -> None:
    model, x = committed(kind, NESTED, NESTED_PLANES), images()
    loaded = artifact.load(artifact.save(model, tmp_path / "model", packing))
    assert loaded.active == model.resolve(8), "a model without its float network starts at its widest pair"
    for which in (3, 4, "w5a5", "w6a6", 8, "mine"):
        with at_bits(model, which), at_bits(loaded, which), torch.no_grad():
            assert torch.equal(loaded(x), model(x)), which
    weight = dict(weights_of(loaded.blocks[1]))["layer1.0.conv1"]
    assert bits_per_weight(weight.spec()) == bits


def test_a_nested_artifact_saves_again_as_the_same_bytes(tmp_path: Path) -> None:
    first = artifact.save(committed("shared", NESTED), tmp_path / "first", "nested")
    second = artifact.save(artifact.load(first), tmp_path / "second", "auto")
    for name in (artifact.MANIFEST, artifact.TENSORS):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_float_network_of_a_nested_artifact_is_refused(tmp_path: Path) -> None:
    loaded = artifact.load(artifact.save(committed("shared", NESTED), tmp_path / "model", "nested"))
    loaded.switch(4)
    with pytest.raises(ModelError) as error:
        loaded.switch(None)
    assert str(error.value) == (
        "the float network is not in this model: a weight was stored as its codes at 8 bits; expected a width. Save "
        "with packing='latent' to keep it."
    )
    assert loaded.active == loaded.resolve(4)
    with pytest.raises(ModelError) as error:
        artifact.save(loaded, tmp_path / "latent", "latent")
    assert str(error.value) == (
        "layer 'conv1' holds codes only and no latent, as it was loaded from a nested artifact; expected "
        "packing='nested' or 'auto'. The latent is in an artifact that was saved with packing='latent'."
    )


def test_free_steps_are_refused_as_nested_and_kept_latent_by_auto(tmp_path: Path) -> None:
    model = committed("shared")
    with pytest.raises(ModelError) as error:
        artifact.save(model, tmp_path / "nested", "nested")
    assert str(error.value) == (
        "layer 'layer1.0.conv1' takes 26 bits per weight as nested and 12 as latent, because its widths 3, 4, 5, 6, 8 "
        "are tied to no other by powers of two or are rounded by an offset; expected nested steps (step_size=nested) "
        "and rounding bits. Save with packing='latent' or 'auto'."
    )
    loaded = artifact.load(artifact.save(model, tmp_path / "auto", "auto"))
    assert isinstance(dict(weights_of(loaded.blocks[1]))["layer1.0.conv1"], MultiBitWeight)


def test_an_unknown_packing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        artifact.save(small_model(), tmp_path / "model", "zip")
    assert str(error.value) == "found packing='zip'; expected one of latent, nested, auto."
    assert not list(tmp_path.iterdir())


def test_another_process_with_other_threads_gives_the_same_logits(tmp_path: Path) -> None:
    """At every width and packing; "auto" with free steps stores pinned layers as codes and the others as latents."""
    models = {
        "latent": committed("per_group"),
        "nested": committed("per_group", NESTED, NESTED_PLANES),
        "auto": committed("shared"),
    }
    every = (3, 4, 5, 6, 8, "w4a8", "mine")
    widths = {"latent": (*every, None), "nested": every, "auto": every}
    for packing, model in models.items():
        artifact.save(model, tmp_path / packing, packing)
    x = images(4)
    torch.save(x, tmp_path / "x.pt")
    program = (
        "import sys, torch; torch.set_num_threads(2)\n"
        "from pathlib import Path\n"
        "from ptmq_lightning.artifact import artifact\n"
        f"place, widths, logits = Path({str(tmp_path)!r}), {widths!r}, {{}}\n"
        "x = torch.load(place / 'x.pt', weights_only=True)\n"
        "for packing in widths:\n"
        "    model = artifact.load(place / packing)\n"
        "    for which in widths[packing]:\n"
        "        model.switch(which)\n"
        "        logits[packing, which] = model(x)\n"
        "torch.save(logits, place / 'y.pt')\n"
        "assert not {'timm', 'lightning', 'hydra', 'torchvision'} & set(sys.modules), sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    found = torch.load(tmp_path / "y.pt", weights_only=True)
    assert set(found) == {(packing, which) for packing in models for which in widths[packing]}
    for (packing, which), logits in found.items():
        with at_bits(models[packing], which), torch.no_grad():
            assert torch.equal(logits, models[packing](x)), (packing, which)
    packings = {type(weight).__name__ for _, weight in weights_of(artifact.load(tmp_path / "auto"))}
    assert packings == {"MultiBitWeight", "NestedWeight"}


def test_a_model_that_is_still_learning_is_refused(tmp_path: Path) -> None:
    model = small_model()
    make_trainable(model.blocks[1], RECIPE, None)
    with pytest.raises(ModelError) as error:
        artifact.save(model, tmp_path / "model")
    assert str(error.value) == (
        "block 1 (layer1.0) holds a Shared at 'layer1.0.conv1'; expected a CommittedWeight. Finish "
        "or commit the block's reconstruction before saving."
    )
    assert not list(tmp_path.iterdir())


def test_a_weight_that_the_file_cannot_hold_is_named_and_nothing_is_saved(tmp_path: Path) -> None:
    """A save decodes what it wrote: here a rounding bit that is no bit."""
    model = committed("shared")
    dict(weights_of(model.blocks[1]))["layer1.0.conv1"].rounding.view(-1)[0] = 2
    with pytest.raises(ArtifactError, match=r"other codes or steps for layer 'layer1\.0\.conv1' than the model"):
        artifact.save(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_model_without_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        artifact.save(small_model(calibrated=False), tmp_path / "model")
    assert str(error.value) == (
        "the activation quantizer 'quantizers.layer1_0_conv1' of block 1 (layer1.0) has no steps; expected a "
        "calibrated model. Calibrate it before saving."
    )


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(ArtifactError) as error:
        artifact.save(small_model(), tmp_path)
    assert str(error.value) == (
        f"cannot save to '{tmp_path}': found 'notes.txt' there; expected a new folder, an empty one or one that holds "
        "an artifact and nothing else. Choose another folder."
    )
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_saving_again_replaces_the_artifact(saved: Path) -> None:
    other = committed("shared")
    artifact.save(other, saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]
    assert dict(weights_of(artifact.load(saved).blocks[1]))["layer1.0.conv1"].rounding.shape[0] == 1


@pytest.fixture
def killed(saved: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact whose replacement was killed after the first of its two renames; every later one fails too."""
    rename, done = Path.rename, []

    def once(path: Path, target: Path) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(target)
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", once)
        artifact.save(committed("shared"), saved)
    assert [path for path in saved.parent.iterdir()] == done, "the artifact has a hidden name and no other"
    return saved


def test_what_a_killed_save_left_is_named(killed: Path) -> None:
    (left,) = killed.parent.iterdir()
    with pytest.raises(ArtifactError) as error:
        artifact.load(killed)
    assert str(error.value) == (
        f"cannot load '{killed}': found no manifest.json; expected manifest.json and model.safetensors. A save was "
        f"stopped and left the artifact in '{left}'. Rename it."
    )
    left.rename(killed)
    assert artifact.load(killed).info.name == "small"


@pytest.mark.parametrize("sound", [True, False])
def test_the_next_save_brings_back_what_a_killed_one_left(sound: bool, killed: Path) -> None:
    """It is replaced where that save succeeds, and stands there again where it does not."""
    if sound:
        artifact.save(committed("shared"), killed)
    else:
        with pytest.raises(ConfigError):
            artifact.save(committed("shared"), killed, "zip")
    assert sorted(path.name for path in killed.parent.iterdir()) == ["model"]
    planes = dict(weights_of(artifact.load(killed).blocks[1]))["layer1.0.conv1"].rounding.shape[0]
    assert planes == (1 if sound else 2)


def test_a_replacement_that_is_interrupted_is_undone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifact.save(committed("shared"), saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]


def test_names_that_only_look_like_those_of_a_killed_save_are_left_alone(saved: Path) -> None:
    others = [".model.v2.0123abcd.old", ".model.0123abcd.part", ".model.mine.old"]
    for name in others:
        (saved.parent / name).mkdir()
    artifact.save(committed("shared"), saved)
    assert sorted(path.name for path in saved.parent.iterdir()) == sorted(["model", *others])


def _drop_file(folder: Path) -> None:
    (folder / artifact.TENSORS).unlink()


def _truncate(folder: Path) -> None:
    data = (folder / artifact.TENSORS).read_bytes()
    (folder / artifact.TENSORS).write_bytes(data[: len(data) // 2])


def _flip_last_byte(folder: Path) -> None:
    data = bytearray((folder / artifact.TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / artifact.TENSORS).write_bytes(bytes(data))


def _edit_manifest(folder: Path) -> None:
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    manifest["layers"][0]["pin_w"] = 4
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))


def _other_version(folder: Path) -> None:
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest | {"version": 99}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_drop_file, "found no model.safetensors; expected manifest.json and model.safetensors. "),
        (_truncate, "model.safetensors is truncated or no safetensors file ("),
        (_flip_last_byte, "the sha256 of tensor '"),
        (_edit_manifest, "manifest.json was altered, its SHA-256 is "),
        (
            _other_version,
            "manifest.json has format 'ptmq artifact', version 99; expected format 'ptmq artifact', version 3. ",
        ),
    ],
)
def test_damage_is_named_in_one_message(saved: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(saved)
    with pytest.raises(ArtifactError) as error:
        artifact.load(saved)
    assert str(error.value).startswith(f"cannot load '{saved}': {says}")


def test_a_named_assignment_that_does_not_fit_the_layers_is_refused(saved: Path) -> None:
    manifest = json.loads((saved / artifact.MANIFEST).read_text())
    del manifest["assignments"]["mine"]["fc"]
    (saved / artifact.MANIFEST).write_text(json.dumps(manifest | {"sha256": digest(manifest)}))
    with pytest.raises(ArtifactError) as error:
        artifact.load(saved)
    assert str(error.value).startswith(f"cannot load '{saved}': manifest.json describes no network: assignments.mine")
    assert "expected one for each layer, 'fc' too" in str(error.value)


@pytest.mark.parametrize("name", [artifact.MANIFEST, artifact.TENSORS])
def test_a_file_that_cannot_be_read_is_named(name: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ArtifactError) as error:
        artifact.load(saved)
    assert str(error.value).startswith(f"cannot load '{saved}': {name} cannot be read (Permission denied); expected ")


def test_any_flipped_bit_is_refused_or_harmless(saved: Path) -> None:
    expected = artifact.load(saved)
    draw = torch.Generator().manual_seed(0)
    for name in (artifact.MANIFEST, artifact.TENSORS):
        intact = (saved / name).read_bytes()
        for _ in range(40):
            data = bytearray(intact)
            data[int(torch.randint(len(data), (), generator=draw))] ^= 1 << int(torch.randint(8, (), generator=draw))
            (saved / name).write_bytes(bytes(data))
            try:
                loaded = artifact.load(saved)
            except PTMQError:
                continue
            for (_, weight), (_, other) in zip(weights_of(loaded), weights_of(expected), strict=True):
                assert torch.equal(weight.at(3), other.at(3))
        (saved / name).write_bytes(intact)
