"""An export runs integers where it promises them, computes what the simulation does, and says what it cannot do."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.nested import NestedWeight
from ptmq_lightning.compose.library import quantize
from ptmq_lightning.device.cli import main
from ptmq_lightning.device.export_cli import lines
from ptmq_lightning.export import flow, onnx_convert, plan, session, values
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.parity import FLOAT_KERNELS, branch_kernels, kernels, layer_steps
from ptmq_lightning.export.session import Session, compile_openvino
from ptmq_lightning.export.values import parameters
from ptmq_lightning.models import blocks, fold, graph, zoo
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.steps import StepSize, calibrate
from ptmq_lightning.runtime.errors import ConfigError, ExportError
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, weights_of
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.switchable import SwitchableWeight
from tests.networks import images, small_model

SLOW = pytest.mark.slow
PAIRS = tuple(BitWidth.parse(pair) for pair in ("w3a3", "w4a4", "w8a8"))
WIDTHS = ["w3a3", "w4a8", "w8a8"]
NETWORKS = [  # name, image size, options, kernels of integer layers and their number
    pytest.param("cifar_resnet20", 32, {}, {"QLinearConv": 19, "QGemm": 1}, id="cifar_resnet20"),
    pytest.param("digits_resnet", 16, {}, None, id="digits_resnet"),
    pytest.param("resnet18", 32, {}, {"QLinearConv": 20, "QGemm": 1}, id="resnet18"),
    pytest.param("mobilenetv2", 32, {}, {"QLinearConv": 52, "QGemm": 1}, id="mobilenetv2"),
    pytest.param("resnet50", 32, {}, {"QLinearConv": 53, "QGemm": 1}, id="resnet50", marks=SLOW),
    pytest.param("regnetx_600mf", 32, {}, None, id="regnetx_600mf", marks=SLOW),
    pytest.param("mobileone_s0", 64, {}, None, id="mobileone_s0", marks=SLOW),
    pytest.param("cifar_vit", 32, {}, {"QGemm": 17}, id="cifar_vit"),
    pytest.param("deit_t", 32, {"img_size": 32}, {"QGemm": 49}, id="deit_t", marks=SLOW),
    pytest.param("swin_t", 64, {"img_size": 64, "window_size": 2}, None, id="swin_t", marks=SLOW),
]


def network_model(name: str, size: int, options: dict[str, object]) -> tuple[MultiBitModel, torch.Tensor]:
    torch.manual_seed(0)
    gm = graph.trace(zoo.build(name, pretrained=False, **options).module, (3, size, size))
    fold.fold(gm)
    x = torch.randn(4, 3, size, size)
    model = insert(blocks.cut(gm, x[:2], name=name), PAIRS, Placement(), StepSize())
    calibrate(model, x)
    return model.eval(), x


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small network in both forms."""
    folder = tmp_path_factory.mktemp("export")
    model = small_model()
    for form in ("static", "switchable"):
        write_export(model, folder / form, images(), WIDTHS, form=form)
    return {form: folder / form for form in ("static", "switchable")}


FORMS = ("static", "multi", "switchable")


@pytest.mark.parametrize(("name", "size", "options", "expected"), NETWORKS)
def test_no_layer_of_a_network_is_left_in_float_and_each_is_within_a_step(
    name: str, size: int, options: dict[str, object], expected: dict[str, int] | None, tmp_path: Path
) -> None:
    model, x = network_model(name, size, options)
    patches = "vit" in name or "deit" in name or "swin" in name  # a ViT's patches are made in float, by design
    products = sum(layer.kind == "matmul" for layer in model.layers.values())
    for form in FORMS:
        reports = write_export(model, tmp_path / form, x, ["w8a8", "w4a4"], form=form)
        assert {width: report.float_kernels for width, report in reports.items()} == dict.fromkeys(
            ("w8a8", "w4a4"), {"Conv": 1} if patches else {}
        )
        assert max(report.largest_step for report in reports.values()) <= 1
        # Two roundings of one value may differ where it is next to a tie, which few are.
        assert max(report.differing for report in reports.values()) < 0.5
        file = tmp_path / form / ("w4a4.onnx" if form == "static" else "model.onnx")
        found = branch_kernels(file)["w4a4"] if form == "multi" else kernels(file)
        assert not expected or {kernel: found[kernel] for kernel in expected} == expected
        assert found["MatMulIntegerToFloat"] + found["QLinearMatMul"] == products


def test_levels_from_a_table_and_biases_of_each_width_are_exported(tmp_path: Path) -> None:
    network = zoo.build("cifar_vit", pretrained=False, depth=2).module
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = quantize(network, x, bits=[["w4a4"], ["w8a8"]], overrides=["placement.gelu=table"])
    layer = model.blocks[1].get_submodule("blocks.0.mlp.fc2")
    layer.biases = torch.stack([layer.bias + 0.5 * row for row in range(len(layer.weight.widths))])
    for form in FORMS:
        reports = write_export(model, tmp_path / form, x, ["w4a4", "w8a8"], form=form)
        # Layer by layer: the classes of a network with random weights are near ties.
        assert max(report.largest_step for report in reports.values()) <= 1


def test_the_test_of_kernels_finds_a_float_one(tmp_path: Path) -> None:
    model = small_model()
    write_export(model, tmp_path / "out", images(), ["w4a4"], float_image=True)
    found = kernels(tmp_path / "out" / "w4a4.onnx")
    assert sum(found[kernel] for kernel in FLOAT_KERNELS) == 1  # the stem, as asked


@pytest.mark.parametrize("form", ["static", "switchable"])
def test_a_session_switches_as_the_model_does(exported: dict[str, Path], form: str) -> None:
    model, session, x = small_model(), Session(exported[form]), images()
    for which in ("w4a8", 3, 8, "w4a8"):
        session.switch(which)
        with at_bits(model, which):
            expected = model(x)
        # Rounding of the image and of convolutions before a shortcut, which the simulation does not have.
        assert (session(x) - expected).abs().max() < 0.15 * expected.abs().max()


def test_there_and_back_is_bitwise_the_same(exported: dict[str, Path]) -> None:
    session, x = Session(exported["switchable"]), images()
    session.switch("w8a8")
    before = session(x)
    session.switch("w3a3")
    assert not torch.equal(session(x), before)
    session.switch("w8a8")
    assert torch.equal(session(x), before)


def test_both_forms_compute_the_same_bits(exported: dict[str, Path]) -> None:
    one, other, x = Session(exported["static"]), Session(exported["switchable"]), images()
    for width in WIDTHS:
        one.switch(width)
        other.switch(width)
        assert torch.equal(one(x), other(x)), width


def test_a_switchable_session_takes_any_mix_of_its_widths(exported: dict[str, Path]) -> None:
    model, session, x = small_model(), Session(exported["switchable"]), images()
    mixed = {n: "w8a8" if n == "layer1.0.conv2" else "w3a3" for n, i in model.layers.items() if not i.pinned}
    session.switch(mixed)
    with at_bits(model, mixed):
        expected = model(x)
    assert (session(x) - expected).abs().max() < 0.15 * expected.abs().max()  # as above
    session.switch("w3a3")
    assert not torch.equal(session(x), expected)


def test_a_session_takes_numpy_and_torch_and_any_batch(exported: dict[str, Path]) -> None:
    session, x = Session(exported["switchable"]), images()
    whole = session(x)
    assert isinstance(session(x.numpy()), np.ndarray)
    assert torch.equal(torch.cat([session(x[:1]), session(x[1:6]), session(x[6:])]), whole)


def test_the_written_file_holds_what_devices_read(exported: dict[str, Path]) -> None:
    model = onnx.load(str(exported["static"] / "w3a3.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (21, 10)
    assert {node.domain for node in model.graph.node} == {""}  # no operator of one runtime's own
    kinds = {i.name: onnx.TensorProto.DataType.Name(i.data_type) for i in model.graph.initializer}
    assert kinds["layer1.0.conv1.weight"] == "INT8" and kinds["layer1.0.conv1.bias"] == "INT32"
    assert kinds["quantizers.layer1_0_conv2.high"] == "UINT8"


def test_a_narrow_weight_fills_seven_bits_and_means_the_same() -> None:
    model = small_model()
    draft = Draft(model, images(), ["w3a3"])
    weight = model.blocks[1].get_submodule("layer1.0.conv1.weight")
    codes, scale = (draft.values["w3a3"][f"layer1.0.conv1.{key}"] for key in ("weight", "scale"))
    assert np.array_equal(codes, weight.code(3).numpy() * 16) and np.abs(codes).max() <= 64
    assert np.array_equal(codes * scale.reshape(-1, 1, 1, 1), weight.at(3).numpy())


def test_a_bias_that_does_not_fit_32_bits_gets_a_coarser_step() -> None:
    codes, step = np.array([[127], [100]], np.int8), np.array([1e-9, 0.1], np.float32)
    bias = np.array([5.0, 1.0], np.float32)
    arrays = {"l.codes.8": codes, "l.steps.8": step, "l.bias.8": bias, "q.grid.8": np.array([0.01, 0], np.float32)}
    table = values.Table({"l": values.LayerRow("l", "q", False, True)}, {"q": values.QuantizerRow("q", "l")})
    found = parameters(table, arrays, BitAssignment((("l", BitWidth(8, 8)),)))
    assert np.allclose(found["l.bias"] * found["l.bias_scale"].astype(np.float64), bias, rtol=1e-6)
    assert found["l.weight"].ravel().tolist() == [0, 100]  # its part, at most 127 * 1e-9 * 2.55, is below the unit


def test_relu6_and_max_pooling_become_bounds_and_bytes() -> None:
    ops = flow.operations(*_pooled())
    made = plan.plan(ops)
    row = made.table.quantizers["quantizers.conv2"]
    assert (row.relu, row.upper) == (True, 6.0)
    assert made.at[next(op for op in ops if op.path == "conv1")] == "quantizers.conv2"


def _pooled() -> tuple[MultiBitModel, torch.Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential()
    for name, layer in (("conv1", nn.Conv2d(3, 4, 3)), ("act", nn.ReLU6()), ("pool", nn.MaxPool2d(2)),
                        ("conv2", nn.Conv2d(4, 4, 3)), ("flat", nn.Flatten()), ("fc", nn.Linear(4, 2))):  # fmt: skip
        network.add_module(name, layer)
    gm = graph.trace(network.eval(), (3, 8, 8))
    model = insert(blocks.cut(gm, images(2)), PAIRS, Placement(), StepSize())
    calibrate(model, 4 * images())
    return model.eval(), 4 * images()


def test_a_pooled_network_is_exact_layer_by_layer() -> None:
    model, x = _pooled()
    draft = Draft(model, x, ["w4a4"])
    with at_bits(model, "w4a4"):
        steps, differing = layer_steps(draft, "w4a4", portable=session.saturates("onnx"))
    assert max(steps.values()) <= 1 and differing < 0.5
    assert onnx_convert.Converter(draft.plan, draft.values["w4a4"]).layers(draft.ops) is not None


def test_openvino_runs_integers_at_every_width(tmp_path: Path) -> None:
    model, x = small_model(), images()
    reports = write_export(model, tmp_path / "out", x, WIDTHS, backend="openvino")
    session = Session(tmp_path / "out")
    for width in WIDTHS:
        session.switch(width)
        with at_bits(model, width):
            expected = model(x)
        assert (session(x) - expected).abs().max() < 0.15 * expected.abs().max()  # chances of a rounding, carried on
        compiled = compile_openvino(tmp_path / "out" / f"{width}.onnx", 1).get_runtime_model()
        layers = Counter(
            op.get_rt_info()["runtimePrecision"].value
            for op in compiled.get_ops()
            if op.get_rt_info()["layerType"].value in ("Convolution", "FullyConnected")
        )
        assert layers["f32"] <= 1, f"{width}: more than the stem runs in float"
        found = reports[width].float_kernels
        assert sum(n for kernel, n in found.items() if kernel != "MatMul") == layers["f32"]
        assert found["MatMul"] in (0, 2)  # the attention's products, which most CPUs get in float
        # No layer rounds its output, so that what is left are sums in another order.
        assert 0 < reports[width].largest_step < 0.01 and reports[width].worst_layer in model.layers
        assert reports[width].differing is None


def test_the_check_of_openvino_finds_a_wrong_layer() -> None:
    model = small_model()
    draft = Draft(model, images(), ["w8a8"], early=False)
    draft.values["w8a8"]["layer1.0.conv2.scale"] = 1.5 * draft.values["w8a8"]["layer1.0.conv2.scale"]
    with at_bits(model, "w8a8"):
        steps, _ = layer_steps(draft, "w8a8", "openvino", portable=session.saturates("openvino"))
    assert [layer for layer, step in steps.items() if step > 1] == ["layer1.0.conv2"]


def test_layers_that_openvino_does_not_compile_by_themselves_are_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_files(path: Path | bytes, threads: int | None) -> object:
        if isinstance(path, bytes) and b"logits" not in path:  # a layer by itself
            raise RuntimeError
        return compile_openvino(path, threads)

    monkeypatch.setattr(session, "compile_openvino", compile_files)
    report = write_export(small_model(), tmp_path / "out", images(), ["w8a8"], backend="openvino")["w8a8"]
    assert (report.largest_step, report.worst_layer, report.differing) == (None, None, None)
    assert "a layer by itself was not checked" in lines({"w8a8": report})[0]


def test_without_a_quantized_layer_nothing_is_reported_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    model = insert(blocks.cut(graph.trace(network.eval(), (3, 8, 8)), images(2)), PAIRS, Placement(), StepSize())
    calibrate(model, images())
    (report,) = write_export(model.eval(), tmp_path / "out", images(), ["w3a3"]).values()
    assert (report.largest_step, report.worst_layer, report.differing) == (None, None, None)
    assert report.float_kernels == {"Conv": 1}
    assert lines({"w8a8": report})[0].endswith(
        "a layer by itself was not checked; convolutions and products in float: 1 Conv"
    )


@pytest.mark.parametrize("form", ["static", "switchable"])
def test_a_nested_artifact_is_exported_with_the_same_numbers(form: str, tmp_path: Path) -> None:
    model, widths = small_model(step_size=StepSize("nested")), ["w4a4", "w8a8"]
    nested = artifact.load(artifact.save(model, tmp_path / "model", packing="nested"))
    assert all(isinstance(weight, NestedWeight) for _, weight in weights_of(nested))
    for name, given in (("latent", model), ("nested", nested)):
        write_export(given, tmp_path / name, images(), widths, form=form)
    one, other = Session(tmp_path / "latent"), Session(tmp_path / "nested")
    for width in widths:
        one.switch(width)
        other.switch(width)
        assert torch.equal(one(images()), other(images()))


def test_a_weight_that_is_still_trained_is_refused() -> None:
    model = small_model()
    layer = model.blocks[1].get_submodule("layer1.0.conv1")
    layer.weight = Trained((3, 4, 8))
    with pytest.raises(ExportError) as error:
        Draft(model, images(), ["w4a4"])
    assert str(error.value) == (
        "the weight blocks.1.layer1.0.conv1 is a Trained; expected a committed one. Commit the reconstruction, or "
        "export a loaded artifact."
    )


class Trained(SwitchableWeight):
    """Not a committed one."""


def test_the_command_writes_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact.save(small_model(), tmp_path / "model")
    np.save(tmp_path / "images.npy", images().numpy())
    given = ["export", str(tmp_path / "model"), "--images", str(tmp_path / "images.npy"), "--bits", "w4a4,w8a8"]
    assert main([*given, "--out", str(tmp_path / "out"), "--form", "switchable"]) == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "export.json", "model.onnx", "widths.safetensors",
    ]  # fmt: skip
    assert "w4a4: top-1 as simulated on " in capsys.readouterr().out


def test_the_artifact_may_be_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact.save(small_model(), tmp_path / "model")
    np.save(tmp_path / "x.npy", images().numpy())
    monkeypatch.chdir(tmp_path / "model")
    assert main(["export", ".", "--images", "../x.npy", "--bits", "w8a8"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'model-onnx'}: ")
    assert (tmp_path / "model-onnx" / "w8a8.onnx").is_file()


def test_no_two_assignments_share_a_name() -> None:
    model = small_model()
    free = [name for name, layer in model.layers.items() if not layer.pinned]
    mixed = [dict.fromkeys(free, "w8a8") | {name: "w4a4"} for name in free[:2]]
    model.assignments["w8a8"] = model.resolve(mixed[1])  # a name that means something else as a width
    draft = Draft(model, images(), [BitWidth(4, 8), BitWidth(8, 4), 3, *mixed, mixed[0], BitWidth(8, 8), "w8a8"])
    assert draft.assignments == {
        "w4a8": BitAssignment.uniform(4, 8, model),
        "w8a4": BitAssignment.uniform(8, 4, model),
        "w3a3": BitAssignment.uniform(3, 3, model),
        "custom": model.resolve(mixed[0]),
        "custom_2": model.resolve(mixed[1]),
        "w8a8_2": BitAssignment.uniform(8, 8, model),
        "w8a8": model.resolve(mixed[1]),
    }


def test_an_operation_outside_the_tables_is_named() -> None:
    model, x = small_model(), images()
    for block in model.blocks:
        for node in block.graph.nodes:
            if node.target is torch.relu:
                node.op, node.target, node.kwargs = "call_method", "cumsum", {"dim": 1}
        block.recompile()
    with pytest.raises(ExportError) as error:
        Draft(model, x, ["w4a4"]).static("w4a4")
    assert "'0.relu' (cumsum" in str(error.value)


def test_a_width_that_was_not_exported_is_refused(exported: dict[str, Path]) -> None:
    with pytest.raises(ConfigError) as error:
        Session(exported["static"]).switch("w6a6")
    assert str(error.value) == (
        "the width 'w6a6' was not exported; found w3a3, w4a8, w8a8. Export it too, or use --form switchable."
    )
    with pytest.raises(ConfigError) as error:
        Session(exported["switchable"]).switch("w6a6")
    assert str(error.value) == (
        "the width 'w6a6' needs 6 bits at the input of layer1.0.conv1, which this export does not hold. Choose among "
        "the exported widths, or export this one too."
    )


def test_a_folder_that_holds_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ExportError) as error:
        write_export(small_model(), tmp_path, images())
    assert str(error.value) == (
        f"cannot export to '{tmp_path}': found 'notes.txt' there; expected a new folder, an empty one or one that "
        f"holds an earlier export and nothing else. Choose another folder."
    )


@pytest.mark.parametrize("name", ["notes.txt", "float.onnx", "pictures/"])
def test_an_export_beside_other_things_is_not_replaced(name: str, exported: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / "out"
    shutil.copytree(exported["static"], place)
    if name.endswith("/"):
        (place / name).mkdir()
    else:
        (place / name).write_text("mine")
    before = sorted(path.name for path in place.iterdir())
    with pytest.raises(ExportError) as error:
        write_export(small_model(), place, images(), ["w8a8"])
    assert str(error.value).startswith(f"cannot export to '{place}': found {name.rstrip('/')!r} there; ")
    assert sorted(path.name for path in place.iterdir()) == before


def test_another_export_json_is_no_export(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text('{"files": {"mine": "notes.txt"}}')
    with pytest.raises(ExportError) as error:
        write_export(small_model(), tmp_path, images(), ["w8a8"])
    assert str(error.value).startswith(f"cannot export to '{tmp_path}': found 'export.json' there; ")


def test_an_earlier_export_is_replaced_and_stays_where_that_fails(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename = tmp_path / "out", Path.rename
    shutil.copytree(exported["switchable"], place)

    def refuse(path: Path, target: Path) -> Path:
        if path.suffix == ".part":
            raise PermissionError
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(PermissionError):
        patch.setattr(Path, "rename", refuse)
        write_export(small_model(), place, images(), ["w8a8"])
    assert Session(place).form == "switchable"
    write_export(small_model(), place, images(), ["w8a8"])
    assert Session(place).form == "static"
    assert sorted(path.name for path in place.iterdir()) == ["export.json", "w8a8.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_to_a_folder_leads_there(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to("disk")
    for _ in range(2):
        write_export(small_model(), tmp_path / "out", images(), ["w8a8"])
    assert (tmp_path / "out").is_symlink() and Session(tmp_path / "disk").widths == ("w8a8",)


def test_images_that_are_no_images_are_refused() -> None:
    with pytest.raises(ExportError) as error:
        Draft(small_model(), images(1), ["w4a4"])
    assert str(error.value) == (
        "found images of shape (1, 3, 8, 8) and type torch.float32; expected at least two preprocessed ones, "
        "(N, C, H, W) float32. Give some tens of real images."
    )


def test_images_that_the_network_does_not_take_are_refused() -> None:
    with pytest.raises(ExportError) as error:
        Draft(small_model(), torch.zeros(4, 2, 8, 8), ["w4a4"])
    assert str(error.value).startswith("the network does not run on images of shape (4, 2, 8, 8) (")
    assert str(error.value).endswith("); expected the channels and size that it was made for. Prepare the images so.")


def test_openvino_has_no_switchable_form(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        write_export(small_model(), tmp_path / "out", images(), form="switchable", backend="openvino")
    assert str(error.value).startswith(
        "found backend='openvino' with form='switchable'; expected a backend and form of"
    )
    assert all(pair in str(error.value) for pair in ("onnx static", "onnx multi", "onnx switchable", "openvino static"))


def test_what_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        Session(tmp_path)
    assert str(error.value).startswith(
        f"cannot open '{tmp_path}': export.json cannot be read (it is missing); expected "
    )


class OddNames(nn.Module):
    """Layers that are called as an export calls things of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.c0, self.c1 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.images, self.bits, self.assignment = (nn.Linear(4, 4) for _ in range(3))
        self.logits = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.c1(torch.relu(self.c0(x)))).mean((2, 3))
        return self.logits(torch.relu(self.assignment(torch.relu(self.bits(torch.relu(self.images(x)))))))


@pytest.mark.parametrize("form", ["static", "switchable", "multi"])
def test_layers_may_be_called_as_what_an_export_names_itself(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = quantize(OddNames().eval(), images(), bits=[["w4a4"], ["w8a8"]])
    write_export(model, tmp_path / "export", images(), ["w4a4", "w8a8"], form=form)
    assert list((tmp_path / "export").rglob("*.onnx"))  # written, opened, checked against the simulation
