"""A .tflite computes what the simulation does, layer by layer within a step, in LiteRT's own interpreter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq_lightning.compose.library import quantize
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.litert_convert import LiteRtConverter, padding_of
from ptmq_lightning.export.session import Session
from ptmq_lightning.models import zoo
from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.model import MultiBitModel, at_bits
from tests.networks import images, small_model

WIDTHS = ["w2a2", "w3a3", "w4a8", "w5a5", "w8a8"]


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    pytest.importorskip("ai_edge_litert")


class Convolutions(nn.Module):
    """Every kind of layer, and strides whose padding TFLite does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.same, self.pool = nn.Conv2d(16, 8, (1, 3), padding="same"), nn.MaxPool2d(3, 2, padding=1)
        self.fc1, self.fc2, self.head = nn.Linear(8 * 12, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu6(self.stem(x)))
        x = x + self.narrow(x)
        x = self.same(F.relu(self.depthwise(x)))
        return self.head(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def batch(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


BITS = [["w2a2", "w3a3", "w4a8"], ["w5a5", "w8a8"]]
LARGE_STEPS = ["fold.equalize=false"]  # of outputs: else biases of so small a network are too coarse for few bits


def made(*overrides: str) -> MultiBitModel:
    torch.manual_seed(0)
    return quantize(Convolutions().eval(), batch(16, 3, 12, 16), bits=BITS, overrides=[*LARGE_STEPS, *overrides])


@pytest.fixture(scope="module")
def model() -> MultiBitModel:
    return made("step_size.zero_points=[]")


@pytest.fixture(scope="module")
def exported(model: MultiBitModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("litert") / "out"
    for name, report in write_export(model, folder, batch(16, 3, 12, 16), WIDTHS, backend="litert").items():
        assert report.largest_step is not None and report.largest_step <= 1, name
        assert report.float_kernels == {} and report.logit_error < 0.5, name
    return folder


def test_a_session_switches_as_the_model_does(model: MultiBitModel, exported: Path) -> None:
    session, x = Session(exported), batch(5, 3, 12, 16)
    for which in ("w8a8", "w4a8", "w8a8"):
        session.switch(which)
        with at_bits(model, which), torch.no_grad():
            expected = model(x)
        # Rounding of the image, of shortcuts and of logits to 8 bits, which the simulation does not have.
        assert (session(x) - expected).abs().max() < 0.15 * expected.abs().max()
        assert torch.equal(session(x[:2]), session(x)[:2])


def test_linear_layers_are_held_in_the_bits_that_the_runtime_has(exported: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    from ptmq_lightning.export.litert_run import Graph

    names = {value: name for name, value in vars(schema.TensorType).items()}
    held = {}
    for width in WIDTHS:
        graph = Graph((exported / f"{width}.tflite").read_bytes())
        named = {tensor.name.decode(): tensor for tensor in graph.tensors}
        held[width] = [names[named[f"{layer}.weight"].type] for layer in ("fc1", "fc2", "depthwise", "head")]
        size = len(graph.buffers[named["fc1.weight"].buffer].data)
        assert size == 96 * 16 * int(held[width][0].removeprefix("INT")) // 8
    assert {width: kinds[0] for width, kinds in held.items()} == {
        "w2a2": "INT2", "w3a3": "INT4", "w4a8": "INT4", "w5a5": "INT8", "w8a8": "INT8",
    }  # fmt: skip
    # 16 weights of 2 bits sum to so little that the bias, counted in their products, would be too coarse.
    assert held["w2a2"][1] != "INT2"
    assert {kind for kinds in held.values() for kind in kinds[2:]} == {"INT8"}  # the last layer is pinned to 8 bits


def test_weights_with_zero_points_are_held_in_a_bit_more(tmp_path: Path) -> None:
    model = made("step_size.zero_points=[2,3,4]")
    for name, report in write_export(model, tmp_path, batch(16, 3, 12, 16), WIDTHS, backend="litert").items():
        assert report.largest_step is not None and report.largest_step <= 1, name


def test_a_wrong_number_is_found(model: MultiBitModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LiteRtConverter._integers

    def wrong(self: LiteRtConverter, op: Op, held: int = 8) -> dict[str, np.ndarray]:
        found = right(self, op, held)
        return {**found, "bias": found["bias"] + 100_000} if op.path == "narrow" else found

    monkeypatch.setattr(LiteRtConverter, "_integers", wrong)
    with pytest.raises(ExportError, match=r"layer narrow by itself differs"):
        write_export(model, tmp_path / "out", batch(16, 3, 12, 16), ["w8a8"], backend="litert")
    assert not (tmp_path / "out").exists()


class Around(nn.Module):
    """An operation between two convolutions."""

    def __init__(self, what: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        self.what = what
        self.before, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.what(self.before(x))).mean((2, 3))


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "relu that others read": (lambda x: torch.relu(x) + x, 4),
    "relu6": (F.relu6, 4),
    "sigmoid gate": (lambda x: x * torch.sigmoid(x), 4),
    "gate per channel": (lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)), 4),
    "hardswish": (F.hardswish, 4),
    "average pool": (lambda x: F.avg_pool2d(x, 2), 4),
    "average pool without its padding": (lambda x: F.avg_pool2d(x, 3, 1, 1, False, False), 4),
    "max pool of signed values": (lambda x: F.max_pool2d(x, 3, 2, 1), 4),
    "cat": (lambda x: torch.cat([x, torch.relu(x)], 1), 8),
    "cat along width": (lambda x: torch.cat([x, torch.relu(x)], 3), 4),
    "pad": (lambda x: F.pad(x, (1, 2, 0, 1)), 4),
    "pad of channels": (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)), 7),
    "identity": (nn.Identity(), 4),
}


QUICK = ("gate per channel", "max pool of signed values", "cat")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in OPERATIONS])
def test_an_operation_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    what, channels = OPERATIONS[name]
    network, x = Around(what, channels).eval(), batch(16, 3, 6, 8)
    model = quantize(network, x, bits=[["w8a8"]], overrides=["placement.gelu=uniform"])
    (report,) = write_export(model, tmp_path / "out", x, backend="litert").values()
    assert report.largest_step is not None and report.largest_step <= 1
    assert report.logit_error < 0.05  # some roundings to 8 bits


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param("cifar_resnet20", 32, marks=pytest.mark.slow),
        pytest.param("resnet18", 64, marks=pytest.mark.slow),
        pytest.param("mobileone_s0", 64, marks=pytest.mark.slow),
        pytest.param("mobilenetv2", 64, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", 64, marks=pytest.mark.slow),
    ],
)
def test_no_layer_of_a_network_is_further_off_than_a_step(name: str, size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = batch(4, 3, size, size)
    model = quantize(zoo.build(name, pretrained=False).module, x, bits=[["w2a4"], ["w8a8"]])
    reports = write_export(model, tmp_path / "out", x, backend="litert")
    assert max(report.largest_step or 0 for report in reports.values()) <= 1
    assert all(report.float_kernels == {} for report in reports.values())


def test_what_the_runtime_lacks_is_named_with_the_target(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot be exported to litert: .*product of activations.*--targets"):
        write_export(small_model(), tmp_path / "out", images(), ["w8a8"], backend="litert")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", [lambda x: x[:, :2] + x[:, 2:], lambda x: 2 * x + 1], ids=["part", "number"])
def test_another_form_of_an_operation_is_refused_by_its_name(what: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Around(what, 2 if what(torch.zeros(1, 4, 1, 1)).shape[1] == 2 else 4).eval(), batch(4, 3, 6, 8)
    with pytest.raises(ExportError, match=r"getitem|add|number"):
        write_export(quantize(network, x, bits=[["w8a8"]]), tmp_path / "out", x, backend="litert")


def test_padding_is_left_to_the_operator_where_its_own_is_the_same() -> None:
    assert padding_of([1, 1, 1, 1], (8, 8), (3, 3), (1, 1), (1, 1)) == (0, [0, 0, 0, 0])
    assert padding_of([1, 1, 1, 1], (8, 8), (3, 3), (2, 2), (1, 1)) == (1, [1, 1, 1, 1])
    assert padding_of([0, 0, 0, 0], (8, 8), (3, 3), (1, 1), (1, 1)) == (1, [0, 0, 0, 0])
