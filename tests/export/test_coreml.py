"""An ML program holds the model's weights in palettes and says what the simulation computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ptmq_lightning.compose.library import quantize
from ptmq_lightning.export import coreml_package
from ptmq_lightning.export.coreml_ops import OPERATIONS
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.onnx_convert import operations
from ptmq_lightning.export.parity import WidthReport
from ptmq_lightning.export.session import Session
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.models import zoo
from ptmq_lightning.runtime.errors import ConfigError, ExportError
from ptmq_lightning.runtime.model import MultiBitModel, at_bits
from tests.networks import images, small_model

GROUPS = [["w2a2", "w3a4"], ["w5a6"], ["w8a8"]]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    pytest.importorskip("coremltools")


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.grouped, self.same = nn.Conv2d(8, 8, 3, groups=2, padding=(0, 1)), nn.Conv2d(8, 8, 3, padding="same")
        self.fc1, self.fc2 = nn.Linear(8 * 2 * 4, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.relu(self.stem(x))))
        x = F.relu(self.grouped(x + F.relu(self.same(x))))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def made(*overrides: str) -> MultiBitModel:
    torch.manual_seed(0)
    return quantize(Convolutional().eval(), batch(8, 3, 8, 8), bits=GROUPS, overrides=overrides)


@pytest.fixture(scope="module")
def model() -> MultiBitModel:
    return made("step_size.zero_points=[]")


Exported = tuple[Path, dict[str, WidthReport]]


@pytest.fixture(scope="module")
def exported(model: MultiBitModel, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    pytest.importorskip("coremltools")
    folder = tmp_path_factory.mktemp("coreml") / "out"
    return folder, write_export(model, folder, batch(8, 3, 8, 8), backend="coreml")


def test_every_layer_computes_what_the_simulation_does(exported: Exported) -> None:
    for name, report in exported[1].items():
        # Float16 rounds inputs, scales and results by 2^-11 each; a step is 1/255 of the output's range.
        assert report.largest_step is not None and report.largest_step < 0.5, name
        assert report.float_kernels == {"conv": 1}, name  # the first one, whose input is the image


def test_the_file_read_back_computes_what_the_simulation_does(model: MultiBitModel, exported: Exported) -> None:
    session, x = Session(exported[0]), batch(8, 3, 8, 8)
    session.switch("w8a8")
    with at_bits(model, "w8a8"), torch.no_grad():
        wanted = model(x)
    assert (session(x[:3]) - wanted[:3]).abs().max() < 0.05 * wanted.std()  # float16


def test_a_weight_is_held_in_the_bits_of_its_palette(exported: Exported) -> None:
    from coremltools.converters.mil.mil import types

    from ptmq_lightning.export.coreml_run import WEIGHT

    for name, bits in {"w2a2": 2, "w3a4": 3, "w5a6": 6, "w8a8": 8}.items():
        program = coreml_package.load(exported[0] / f"{name}.mlpackage").functions["main"]
        weight = [op for op in program.operations if op.op_type == WEIGHT][3]  # of the grouped convolution
        assert weight.outputs[0].shape == (8, 4, 3, 3)
        if bits == 8:  # needs no palette
            assert weight.inputs["data"].dtype is types.int8
            continue
        palette = weight.inputs["data"].op
        assert palette.inputs["lut"].shape == (1, 1, 1, 1, 2**bits, 1) and palette.inputs["lut"].dtype is types.int8
        assert types.builtin_to_string(palette.inputs["indices"].dtype) == f"uint{bits}", name


def test_zero_points_give_each_channel_a_table_of_its_own_in_the_same_bits(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import types

    from ptmq_lightning.export.coreml_run import WEIGHT

    model = made("step_size.zero_points=[2,3,5]")
    for name, report in write_export(model, tmp_path, batch(8, 3, 8, 8), backend="coreml").items():
        assert report.largest_step is not None and report.largest_step < 0.5, name
    program = coreml_package.load(tmp_path / "w3a4.mlpackage").functions["main"]
    palette = [op for op in program.operations if op.op_type == WEIGHT][3].inputs["data"].op
    assert palette.inputs["lut"].shape == (8, 1, 1, 1, 8, 1)
    assert types.builtin_to_string(palette.inputs["indices"].dtype) == "uint3"


def test_fewer_bits_make_a_smaller_file(exported: Exported) -> None:
    file = coreml_package.WEIGHTS / "weight.bin"
    sizes = [(exported[0] / f"{name}.mlpackage" / file).stat().st_size for name in ("w2a2", "w3a4", "w5a6")]
    assert sizes == sorted(set(sizes))


def test_weights_of_the_file_are_the_models_codes_times_its_steps(model: MultiBitModel, exported: Exported) -> None:
    target = target_of("coreml")
    draft = Draft(model, batch(8, 3, 8, 8), ["w3a4"], target=target)
    program = coreml_package.load(exported[0] / "w3a4.mlpackage")
    target.verify(draft, "w3a4", program)
    fc1: Any = model.blocks[model.layers["fc1"].block].get_submodule("fc1")
    fc1.weight.steps[fc1.weight.widths.index(3)] *= 1.5
    try:
        with pytest.raises(ExportError, match="weights of 'fc1' at w3a4 are not the model's"):
            target.verify(draft, "w3a4", program)
    finally:
        fc1.weight.steps[fc1.weight.widths.index(3)] /= 1.5


def test_the_same_model_makes_the_same_bytes(model: MultiBitModel, exported: Exported, tmp_path: Path) -> None:
    target = target_of("coreml")
    draft = Draft(model, batch(8, 3, 8, 8), ["w3a4"], target=target)
    target.write(target.network(draft, "w3a4"), tmp_path / "again.mlpackage")
    for file in (tmp_path / "again.mlpackage").rglob("*"):
        other = exported[0] / "w3a4.mlpackage" / file.relative_to(tmp_path / "again.mlpackage")
        assert not file.is_file() or file.read_bytes() == other.read_bytes(), file


def test_an_export_replaces_an_earlier_one_and_nothing_else(model: MultiBitModel, tmp_path: Path) -> None:
    for _ in range(2):
        write_export(model, tmp_path / "out", batch(4, 3, 8, 8), ["w3a4"], backend="coreml")
    weights = tmp_path / "out" / "w3a4.mlpackage" / coreml_package.WEIGHTS / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ExportError, match=r"weight.bin was altered"):
        Session(tmp_path / "out")
    (tmp_path / "out" / "mine.mlpackage").mkdir()
    with pytest.raises(ExportError, match=r"found 'mine.mlpackage' there"):
        write_export(model, tmp_path / "out", batch(4, 3, 8, 8), ["w3a4"], backend="coreml")


class Around(nn.Module):
    """What is looked at between two convolutions."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.what, self.before, self.after = what, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.what(self.before(x))).mean((2, 3))


def together(*operations: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Their sum, of operations that keep the shape."""

    def run(x: Tensor) -> Tensor:
        found = operations[0](x)
        for operation in operations[1:]:
            found = found + operation(x)
        return found

    return run


GROUPED_OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "functions": together(F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.silu, torch.sigmoid, torch.tanh,
                          F.hardswish, F.hardsigmoid, F.hardtanh, lambda x: x.clamp(-0.5, 0.7)),
    "arithmetic": lambda x: torch.maximum(x * 2 - x / 3, torch.minimum(x, 1 - x)),
    "pools": together(lambda x: F.max_pool2d(x, 3, 1, 1), lambda x: F.avg_pool2d(x, 3, 1, 1),
                      lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
                      lambda x: F.adaptive_avg_pool2d(x, 1)),
    "moves": lambda x: x.transpose(2, 3).flatten(2).permute(0, 2, 1).reshape(-1, 4, 4, 8).movedim(3, 1),
    "pieces": lambda x: torch.cat([*x.split([2, 6], 1)[::-1], *x.chunk(2, 1), x[:, ::2], x[:, 1:5]], 1)[:, :8],
    "pads": together(lambda x: F.pad(x, (1, 2, 0, 1))[:, :, :4, 1:5],
                     lambda x: F.pad(x, (1, 1, 1, 1), "reflect")[:, :, 1:5, :4]),
    "softmax": lambda x: x.softmax(1) + F.layer_norm(x, (4, 4)),
    "product": lambda x: (x.flatten(2) @ x.flatten(2).transpose(1, 2)).unsqueeze(3).expand(-1, -1, -1, 2),
    "sizes": lambda x: x + torch.ones(1, 8, 1, 1).expand(x.shape[0], -1, -1, -1),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPED_OPERATIONS)
def test_operations_compute_what_the_simulation_does(name: str) -> None:
    """Without the file: the program as it is made."""
    torch.manual_seed(0)
    x = batch(8, 3, 4, 4)
    model = quantize(Around(GROUPED_OPERATIONS[name]).eval(), x, bits=[["w8a8"]], overrides=["placement.gelu=uniform"])
    target = target_of("coreml")
    draft = Draft(model, x, ["w8a8"], target=target)
    from ptmq_lightning.export.coreml_run import images_to_logits

    run = images_to_logits(target.network(draft, "w8a8"))
    with at_bits(model, "w8a8"), torch.no_grad():
        wanted = model(x).numpy()
    # Float16 moves some values over the middle between two of 255 levels.
    assert np.abs(run(x.numpy()) - wanted).max() < 0.1 * wanted.std()


def test_a_transformer_computes_what_the_simulation_does() -> None:
    from ptmq_lightning.export.coreml_run import images_to_logits

    network, x = zoo.build("cifar_vit", pretrained=False, depth=1).module, batch(4, 3, 32, 32)
    model = quantize(network, x, bits=[["w4a8"]], overrides=["placement.gelu=uniform"])
    draft = Draft(model, x, ["w4a8"], target=target_of("coreml"))
    run = images_to_logits(target_of("coreml").network(draft, "w4a8"))
    with at_bits(model, "w4a8"), torch.no_grad():
        wanted = model(x).numpy()
    assert np.abs(run(x.numpy()) - wanted).max() < 0.1 * wanted.std()


def test_every_operation_that_is_listed_has_an_onnx_form() -> None:
    assert operations() >= OPERATIONS


def test_what_is_not_written_is_named_before_anything_is(tmp_path: Path) -> None:
    model = quantize(Around(torch.erf).eval(), batch(4, 3, 4, 4), bits=[["w8a8"]])
    with pytest.raises(ExportError, match=r"to coreml: .*erf.*--targets"):
        write_export(model, tmp_path / "out", batch(4, 3, 4, 4), backend="coreml")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = "ptmq_lightning.runtime.extras.find_spec"
    monkeypatch.setattr(known, lambda name: None if name == "coremltools" else object())
    with pytest.raises(ConfigError, match=r"^coremltools cannot be imported.*ptmq-lightning\[coreml\]"):
        write_export(small_model(), tmp_path / "out", images(), backend="coreml")
