"""With placement.deploy=onnx the simulation rounds what an ONNX export rounds, from before the fit on."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose.library import quantize, reconstruct
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.layers import ActivationQuantizer, WeightLayer
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, quantizers_of, weights_of
from tests.artifact.test_hostile import forge
from tests.networks import SmallNet, images, small_network

PAIRS = [["w4a4"], ["w8a8"]]
DEPLOYED = "placement.deploy=onnx"
ADDED = {"quantizers.conv1", "quantizers.layer1_0_conv2_out", "quantizers.layer1_1_conv2_out"}


class Shortcuts(nn.Module):
    """The convolutions of the small network: a stem, two shortcuts, a head."""

    def __init__(self, whole: SmallNet) -> None:
        super().__init__()
        self.conv1, self.bn1, self.layer1, self.fc = whole.conv1, whole.bn1, whole.layer1, whole.fc

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layer1(torch.relu(self.bn1(self.conv1(x)))).mean(dim=(2, 3)))
        return logits


def convolutions() -> nn.Module:
    whole = small_network()
    assert isinstance(whole, SmallNet)
    return Shortcuts(whole).eval()


@pytest.fixture(scope="module")
def made() -> dict[str, MultiBitModel]:
    """The network without and with the option, weights of 4 bits with zero points; a test copies what it changes."""
    own = {name: [f"placement.deploy={name}", "step_size.zero_points=[4]"] for name in ("none", "onnx")}
    found = {name: quantize(convolutions(), images(), bits=PAIRS, overrides=given) for name, given in own.items()}
    assert {moved for _, weight in weights_of(found["onnx"]) if (moved := weight.moved)} == {(4,)}
    return found


def paths(model: MultiBitModel) -> set[str]:
    return {path for block in model.blocks for path, _ in quantizers_of(block)}


def logits(model: MultiBitModel, width: str, x: Tensor) -> Tensor:
    with at_bits(model, width), torch.no_grad():
        found: Tensor = model(x)
    return found


def test_a_quantizer_stands_where_the_export_would_make_up_a_grid(made: dict[str, MultiBitModel]) -> None:
    before, after = (Draft(model, images(), ["w4a4"]).plan for model in (made["none"], made["onnx"]))
    assert set(before.watched) == {"image", "layer1.0.conv2.output", "layer1.1.conv2.output"}
    assert not after.watched
    assert paths(made["onnx"]) - paths(made["none"]) == ADDED


def test_the_added_quantizers_are_calibrated_at_eight_bits(made: dict[str, MultiBitModel]) -> None:
    added = [q for block in made["onnx"].blocks for path, q in quantizers_of(block) if path in ADDED]
    assert [(q.widths, q.pin, q.calibrated) for q in added] == [((8,), 8, True)] * 3


@pytest.mark.runtimes
@pytest.mark.parametrize("form", ["static", "switchable"])
def test_an_export_answers_random_images_as_its_simulation(
    form: str, made: dict[str, MultiBitModel], tmp_path: Path
) -> None:
    x, apart = images(200, seed=7), {}
    for name, model in made.items():
        write_export(model, tmp_path / name, images(), ["w4a4", "w8a8"], form=form)
        session = Session(tmp_path / name)
        for width in ("w4a4", "w8a8"):
            session.switch(width)
            found, expected = session(x), logits(model, width, x)
            apart[name, width] = float((found - expected).abs().max() / expected.std())
            assert name == "none" or torch.equal(found.argmax(1), expected.argmax(1))
    # The order of additions in float32 may put one value in a million to the other side of a tie; a step of one
    # value at 8 bits moves the logits by less than a hundredth of their deviation.
    assert apart["onnx", "w4a4"] < 1e-5
    assert apart["onnx", "w8a8"] < 1e-2
    assert apart["none", "w4a4"] > 1e-2  # so that the test can fail


def test_biases_count_in_the_unit_of_their_exported_integers(made: dict[str, MultiBitModel]) -> None:
    model = made["onnx"]
    draft = Draft(model, images(), ["w4a4", "w8a8"])
    for width in ("w4a4", "w8a8"):
        for name, layer in model.layers.items():
            module = model.blocks[layer.block].get_submodule(name)
            found: list[Tensor] = []
            with pytest.MonkeyPatch.context() as patch, at_bits(model, width):
                patch.setattr(module, "compute", lambda x, _, bias, module=module, found=found: found.append(bias) or
                              type(module).compute(module, x, module.weight(), bias))  # fmt: skip
                model(images(2))
            integers = draft.values[width]
            exported = torch.from_numpy(integers[f"{name}.bias"] * integers[f"{name}.bias_scale"]).float()
            assert torch.equal(found[0], exported)
            assert not torch.equal(found[0], module.bias)


def test_openvino_is_given_the_biases_of_the_simulation(made: dict[str, MultiBitModel]) -> None:
    held = {}
    for name, model in made.items():
        network = Draft(model, images(), ["w4a4"], target=target_of("openvino")).static("w4a4", clip="values")
        held[name] = {tensor.name for tensor in network.graph.initializer} & {"fc.bias", "fc.bias_float"}
    assert held == {"none": {"fc.bias_float"}, "onnx": {"fc.bias"}}


def test_biases_stay_as_they_are_in_float_and_while_step_sizes_are_learned(made: dict[str, MultiBitModel]) -> None:
    model = copy.deepcopy(made["onnx"])
    layer = model.blocks[0].get_submodule("conv1")
    quantizer = model.blocks[0].get_submodule("quantizers.conv1")
    assert isinstance(layer, WeightLayer) and isinstance(quantizer, ActivationQuantizer)
    x = torch.zeros(1, 3, 8, 8)  # so that the output is the bias
    assert torch.equal(layer(x, quantizer=quantizer), layer(x))
    model.switch("w8a8")
    assert not torch.equal(layer(x, quantizer=quantizer), layer(x))
    quantizer.fixed_step = lambda: None  # type: ignore[method-assign]  # as its trainable twin
    assert torch.equal(layer(x, quantizer=quantizer), layer(x))


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_a_fit_learns_the_added_quantizers_and_the_artifact_keeps_them(
    unit: str, made: dict[str, MultiBitModel], tmp_path: Path
) -> None:
    model, x = copy.deepcopy(made["onnx"]), images()
    short = ["recon.iters=4", "recon.batch=4", "method.drop=0", f"method.unit={unit}", "trainer.compile=never"]
    reconstruct(model, x, overrides=short)
    moved = {
        path
        for old, new in zip(made["onnx"].blocks, model.blocks, strict=True)
        for path, quantizer in quantizers_of(new)
        if not torch.equal(quantizer.steps, old.get_submodule(path).steps)
    }
    # As layers, what follows a convolution that a shortcut is added to belongs to no fit.
    assert moved >= (ADDED if unit == "block" else {"quantizers.conv1"})
    loaded = artifact.load(artifact.save(model, tmp_path / "model"))
    for width in ("w4a4", "w8a8"):
        assert torch.equal(logits(loaded, width, x), logits(model, width, x))
    assert Draft(loaded, x, ["w4a4"]).plan.watched == {}


def test_a_handle_rounds_as_the_model(made: dict[str, MultiBitModel]) -> None:
    x = images(4)
    assert torch.equal(logits(made["onnx"].handle(), "w4a4", x), logits(made["onnx"], "w4a4", x))


def test_a_graph_that_computes_with_a_quantizer_is_refused(tmp_path: Path) -> None:
    def change(manifest: dict[str, list[dict[str, list[dict[str, object]]]]]) -> None:
        told = {"name": "told", "op": "get_attr", "target": "quantizers.fc", "args": [], "kwargs": {}}
        moved = {"name": "moved", "op": "call_method", "target": "to", "args": [{"node": "told"}], "kwargs": {}}
        manifest["blocks"][0]["nodes"][-1:-1] = [told, moved]

    with pytest.raises(ArtifactError, match=r"computes with the quantizer 'quantizers\.fc'"):
        artifact.load(forge(tmp_path / "forged", change))
