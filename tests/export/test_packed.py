"""A weight of b bits takes b bits in an ONNX file, and what is unpacked of them is the weight."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import ptmq_lightning as ptmq
from ptmq_lightning.export import onnx_packed
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.onnx_packed import as_weight, narrow, unpacked
from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.export.parity import FLOAT_KERNELS, kernels
from ptmq_lightning.export.portable import as_portable, shifted
from ptmq_lightning.export.session import inference_session
from ptmq_lightning.export.values import Array
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import ZEROS
from tests.networks import images, small_model

ALL = [[f"w{bits}a8"] for bits in range(2, 9)]


class EveryLayer(nn.Module):
    """A convolution, a depthwise one, a transposed one and a linear layer, of sizes that no byte divides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.conv = nn.Conv2d(5, 7, 3, padding=1)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.up = nn.ConvTranspose2d(7, 5, 3, stride=2, padding=1)
        self.linear = nn.Linear(5, 9)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.conv(self.stem(x).relu()).relu()).relu()
        return self.head(self.linear(self.up(x).relu().mean((2, 3))).relu())


@cache
def every_layer(zero_points: bool = False) -> tuple[MultiBitModel, Tensor]:
    """zero_points: of channels that are served by them, at 2 to 6 bits."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 6, 6)
    more = [f"step_size.zero_points={[2, 3, 4, 5, 6] if zero_points else []}"]
    return ptmq.quantize(EveryLayer().eval(), x, bits=ALL, overrides=more), x


def exact_session(model: Any) -> Any:
    """A session of a graph (or of its bytes) that computes the same on every processor."""
    return inference_session(as_portable(model, "onnx").SerializeToString(), 1)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little it saves."""
    monkeypatch.setattr(onnx_packed, "WORTH", -(2**60))


def weights_in(model: Any, names: list[str]) -> dict[str, Array]:
    """What the tensors of a graph are when it runs."""
    graph = onnx.ModelProto.FromString(model.SerializeToString()).graph
    known = {t.name: t.data_type for t in graph.initializer}
    made = {name: known.get(name, onnx.TensorProto.INT8) for name in names}
    signed = onnx.ModelProto.FromString(model.SerializeToString())
    signed.graph.output.extend(onnx.helper.make_tensor_value_info(n, kind, None) for n, kind in made.items())
    x = np.zeros([2, *(d.dim_value for d in graph.input[0].type.tensor_type.shape.dim[1:])], np.float32)
    found = inference_session(signed.SerializeToString(), 1).run(names, {"images": x})
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("width", [f"w{bits}a8" for bits in range(2, 8)])
def test_every_kind_of_layer_is_unpacked_bit_for_bit(width: str, zero_points: bool, always: None) -> None:
    model, x = every_layer(zero_points)
    draft = Draft(model, x, [width])
    made = draft.static(width)
    names = [f"{layer}.weight" for layer in ("conv", "depthwise", "up", "linear")]
    assert not set(names) & {tensor.name for tensor in made.graph.initializer}  # packed, all of them
    for name, found in weights_in(made, names).items():
        assert np.array_equal(found, draft.values[width][name]), name


def test_a_packed_file_is_plain_onnx(always: None) -> None:
    model, x = every_layer()
    made = Draft(model, x, ["w3a8"]).static("w3a8")
    onnx.checker.check_model(made, full_check=True)
    assert (made.opset_import[0].version, made.ir_version) == (21, 10)
    assert {node.domain for node in made.graph.node} == {""}


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("width", ["w2a8", "w5a8"])
def test_packed_and_whole_weights_run_the_same_kernels_on_the_same_numbers(
    width: str, zero_points: bool, portable: bool, always: None
) -> None:
    model, x = every_layer(zero_points)
    draft = Draft(model, x, [width])
    graphs = [draft.static(width, pack=pack) for pack in (True, False)]
    files = [(as_portable(graph, "onnx") if portable else graph).SerializeToString() for graph in graphs]
    one, other = (inference_session(file, 1).run(None, {"images": x.numpy()})[0] for file in files)
    assert np.array_equal(one, other)
    found = kernels(files[0])
    assert found == kernels(files[1]) and not set(found) & FLOAT_KERNELS


@pytest.mark.parametrize("bits", range(2, 8))
def test_a_weight_of_b_bits_takes_b_bits(bits: int) -> None:
    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (64, 64, 3, 3)).astype(np.int8)
    w = Writer({})
    as_weight(w, "weight", "weight", codes * np.int8(2 ** (7 - bits)))
    file = len(w.model([("weight", np.int8, codes.shape)], {}).SerializeToString())
    assert bits <= 8 * file / codes.size < bits + 0.3  # the nodes take a kilobyte


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("bits", range(2, 7))
def test_a_weight_of_b_bits_with_zero_points_takes_b_bits(bits: int, turned: bool) -> None:
    draw = np.random.default_rng(0)
    codes = draw.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (512, 300)).astype(np.int8)
    zero = draw.choice(ZEROS, 512).astype(np.int8)
    whole = grid.multiples(torch.from_numpy(codes), torch.from_numpy(zero)).numpy() * np.int8(2 ** (6 - bits))
    weight = np.ascontiguousarray(whole.T) if turned else whole
    w = Writer({})
    as_weight(w, "weight", "weight", weight)
    file = w.model([("weight", np.int8, weight.shape)], {}).SerializeToString()
    assert bits <= 8 * len(file) / codes.size < bits + 0.2
    assert np.array_equal(inference_session(file, 1).run(None, {})[0], weight)


@pytest.mark.parametrize("bits", range(1, 9))
def test_values_come_back_whatever_their_number(bits: int) -> None:
    for count in (1, 7, 8, 9, 64, 101):
        values = np.random.default_rng(count).integers(0, 2**bits, count).astype(np.uint8)
        w = Writer({})
        w.node("Identity", [unpacked(w, "x", values, bits)], "made")
        model = w.model([("made", np.uint8, (count,))], {})
        assert np.array_equal(inference_session(model.SerializeToString(), 1).run(None, {})[0], values)


def test_a_weight_that_was_widened_for_its_bias_takes_the_bits_that_it_needs() -> None:
    three = np.arange(-4, 4, dtype=np.int8) * np.int8(16)
    assert narrow(three) == (3, 4)
    assert narrow(np.append(three, np.int8(3))) == (7, 0)  # one channel on another grid
    assert narrow(np.array([-128, 127], np.int8)) is None


def test_a_small_weight_stays_whole() -> None:
    model, x = every_layer()
    made = Draft(model, x, ["w3a8"]).static("w3a8")  # its nodes would take more than the bits saved
    assert "conv.weight" in {tensor.name for tensor in made.graph.initializer}


@pytest.mark.parametrize("zero_points", [False, True])
def test_the_portable_form_makes_unsigned_weights_of_packed_ones(zero_points: bool, always: None) -> None:
    model, x = every_layer(zero_points)
    draft = Draft(model, x, ["w3a8"])
    made = as_portable(draft.static("w3a8"), "onnx")
    onnx.checker.check_model(made, full_check=True)
    copy = onnx.ModelProto.FromString(made.SerializeToString())
    copy.graph.output.append(onnx.helper.make_tensor_value_info("conv.weight", onnx.TensorProto.UINT8, None))
    feed = {"images": np.zeros((2, 3, 6, 6), np.float32)}
    (found,) = inference_session(copy.SerializeToString(), 1).run(["conv.weight"], feed)
    assert np.array_equal(found, shifted("conv.weight", draft.values["w3a8"]["conv.weight"]))


def test_the_option_of_onnx_runtime_opens_a_packed_file(always: None) -> None:
    import onnxruntime as ort

    model, x = every_layer()
    file = Draft(model, x, ["w4a8"]).static("w4a8").SerializeToString()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    opened = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {"images": x.numpy()}
    assert np.array_equal(opened.run(None, feed)[0], exact_session(file).run(None, feed)[0])


def test_weights_stay_whole_where_that_is_asked_for(tmp_path: Path, always: None) -> None:
    for packed in (True, False):
        write_export(small_model(), tmp_path / str(packed), images(), ["w3a3"], packed=packed)
        names = {t.name for t in onnx.load(str(tmp_path / str(packed) / "w3a3.onnx")).graph.initializer}
        assert ("layer1.0.conv1.weight" in names) is not packed


@pytest.mark.parametrize(("form", "backend"), [("multi", "onnx"), ("static", "openvino")])
def test_whole_weights_are_refused_where_there_is_no_choice(form: str, backend: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"packed=False.*form='static' of backend='onnx'"):
        write_export(small_model(), tmp_path / "out", images(), form=form, backend=backend, packed=False)
