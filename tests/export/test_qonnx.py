"""A QONNX graph is the simulation: any width, weights bit for bit, run by qonnx's own executor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ptmq_lightning.compose.library import quantize
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.models import zoo
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.runtime.errors import ConfigError, ExportError
from ptmq_lightning.runtime.model import at_bits
from ptmq_lightning.runtime.spec import BitWidth
from tests.networks import images, small_model

PAIRS = tuple(BitWidth.parse(pair) for pair in ("w2a2", "w3a5", "w7a6", "w8a8"))


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    pytest.importorskip("qonnx")


def test_the_executor_computes_what_the_simulation_does_at_every_width(tmp_path: Path) -> None:
    model, x = small_model(pairs=PAIRS), images()
    for name, report in write_export(model, tmp_path / "out", x, backend="qonnx").items():
        # Both are float32 sums of the same values; only their order differs.
        assert report.largest_step is not None and report.largest_step < 0.01, name
        assert report.agreement == 100 and report.logit_error < 0.02, name
    session = Session(tmp_path / "out")
    session.switch("w3a5")
    with at_bits(model, "w3a5"), torch.no_grad():
        assert torch.allclose(session(x[:3]), model(x[:3]), atol=0.05)


def test_zero_points_take_a_bit_more_and_no_zero_point(tmp_path: Path) -> None:
    model, x = small_model(pairs=PAIRS, step_size=StepSize(zero_points=[2, 3])), images()
    for name, report in write_export(model, tmp_path / "out", x, backend="qonnx").items():
        assert report.largest_step is not None and report.largest_step < 0.01, name
    graph = onnx.load(str(tmp_path / "out" / "w3a5.onnx")).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quants = [node for node in graph.node if node.op_type == "Quant" and node.output[0].endswith(".weight")]
    assert {(float(held[q.input[2]]), float(held[q.input[3]])) for q in quants} == {(0, 4), (0, 8)}


def test_a_file_tells_the_bits_of_every_layer(tmp_path: Path) -> None:
    model = small_model(pairs=PAIRS)
    free = [name for name, layer in model.layers.items() if not layer.pinned]
    mixed = {name: "w3a5" if i % 2 else "w2a2" for i, name in enumerate(free)}
    write_export(model, tmp_path / "out", images(), [mixed], backend="qonnx")
    graph = onnx.load(str(tmp_path / "out" / "custom.onnx")).graph
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    bits = {node.output[0]: float(held[node.input[3]]) for node in graph.node if node.op_type == "Quant"}
    wanted = {
        f"{name}.weight": float(width.w) for name, width in model.resolve(mixed).items() if model.layers[name].weights
    }
    assert {name: bits[name] for name in wanted} == wanted


def test_qonnx_prepares_the_file_for_its_compilers_and_counts_its_bits(tmp_path: Path) -> None:
    from qonnx.util.cleanup import cleanup
    from qonnx.util.inference_cost import inference_cost

    model = small_model(pairs=PAIRS)
    write_export(model, tmp_path / "out", images(), ["w3a5"], backend="qonnx")
    cleanup(str(tmp_path / "out" / "w3a5.onnx"), out_file=str(tmp_path / "clean.onnx"))
    total = inference_cost(str(tmp_path / "clean.onnx"), discount_sparsity=False)["total_cost"]
    bits = {layer.width(BitWidth(3, 5)).w for layer in model.layers.values() if layer.weights}
    assert {key for key in total if key.startswith("mem_w_SCALEDINT")} == {f"mem_w_SCALEDINT<{w}>" for w in bits}


def test_a_weight_that_comes_out_differently_is_refused() -> None:
    draft = Draft(small_model(pairs=PAIRS), images(), ["w3a5"], target=target_of("qonnx"))
    target = target_of("qonnx")
    network = target.network(draft, "w3a5")
    target.verify(draft, "w3a5", network)
    tensor = next(t for t in network.graph.initializer if t.name == "fc.weight.values")
    wrong = onnx.numpy_helper.to_array(tensor).copy()
    wrong.flat[0] += np.abs(wrong).max()
    tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, tensor.name))
    with pytest.raises(ExportError, match=r"1 weights of 'fc' at w3a5"):
        target.verify(draft, "w3a5", network)


def test_levels_from_a_table_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    network = zoo.build("cifar_vit", pretrained=False, depth=1).module
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = quantize(network, x, bits=[["w4a4"], ["w8a8"]], overrides=["placement.gelu=table"])
    with pytest.raises(ExportError, match=r"qonnx.*levels from a table.*--targets"):
        write_export(model, tmp_path / "out", x, backend="qonnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptmq_lightning.runtime.extras.find_spec", lambda name: None if name == "qonnx" else object())
    with pytest.raises(ConfigError, match=r"^qonnx cannot be imported.*ptmq-lightning\[qonnx\]"):
        write_export(small_model(pairs=PAIRS), tmp_path / "out", images(), backend="qonnx")
