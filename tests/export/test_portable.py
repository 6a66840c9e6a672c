"""An export computes the same on processors with and without VNNI."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from ptmq_lightning.compose.library import quantize
from ptmq_lightning.export import export, portable
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.folder import read_manifest
from ptmq_lightning.export.parity import layer_steps
from ptmq_lightning.export.portable import as_portable, saturates
from ptmq_lightning.export.session import Session
from ptmq_lightning.models import zoo
from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.model import MultiBitModel, at_bits
from tests.export.test_packed import every_layer
from tests.networks import images, small_model

FORMS = [("static", "onnx"), ("multi", "onnx"), ("switchable", "onnx"), ("static", "openvino")]
WIDTHS = ["w8a8", "w4a4"]
PICTURES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SIGNED = pytest.mark.skipif(saturates("onnx"), reason="this processor saturates: it has the portable form alone")


def signed_factors() -> tuple[MultiBitModel, torch.Tensor]:
    """Attention whose second factors are s8 and whose levels behind a GELU stand in tables."""
    return quantize(transformer(), PICTURES, bits=[["w4a4"], ["w8a8"]], overrides=["placement.gelu=table"]), PICTURES


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return zoo.build("cifar_vit", pretrained=False, depth=1).module


def test_the_probe_is_the_product_that_saturates() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [1, 2])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [1, 1])],
        [numpy_helper.from_array(np.full((2, 1), 127, np.int8), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    assert model.SerializeToString() == portable._PROBE


@SIGNED
@pytest.mark.parametrize(("form", "backend"), FORMS)
@pytest.mark.parametrize("make", [lambda: (small_model(), images()), signed_factors], ids=["small", "factors"])
def test_both_forms_give_the_same_logits(make, form: str, backend: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, x = make()
    write_export(model, tmp_path / "out", x, WIDTHS, form=form, backend=backend)
    signed, other = (Session(tmp_path / "out", portable=choice) for choice in (False, True))
    assert (signed.portable, other.portable) == (False, True)
    for width in WIDTHS:
        signed.switch(width)
        other.switch(width)
        if backend == "onnx":
            assert torch.equal(signed(x), other(x))
        else:  # two sums in float instead of one: a rounding here and there falls the other way
            assert (signed(x) - other(x)).square().mean().sqrt() < 0.05 * signed(x).std()


@pytest.mark.parametrize(("form", "backend"), FORMS)
def test_a_portable_file_holds_nothing_that_saturates(form: str, backend: str, tmp_path: Path) -> None:
    model, x = signed_factors()
    reports = write_export(model, tmp_path / "out", x, WIDTHS, form=form, backend=backend, weights="portable")
    assert max(report.largest_step for report in reports.values()) <= 1
    for path in (tmp_path / "out").glob("*.onnx"):
        graph = onnx.load(path).graph
        signed = [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT8]
        kinds = [value.type.tensor_type.elem_type for value in graph.input]
        if backend == "onnx":
            assert not signed and TensorProto.INT8 not in kinds
        else:  # patches are made in float, whatever their weights
            assert sum(np.abs(codes.astype(int)).max() > 64 for codes in signed) <= 1
    assert read_manifest(tmp_path / "out")["old_processors"] == "exact on every processor"


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_every_layer_agrees_in_the_portable_form(backend: str) -> None:
    model, x = signed_factors()
    draft = Draft(model, x, WIDTHS, early=backend == "onnx")
    for width in WIDTHS:
        with at_bits(model, width):
            steps, _ = layer_steps(draft, width, backend, portable=True)
        assert max(steps.values()) <= 1


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_product_of_two_large_factors_agrees_in_the_portable_form(backend: str) -> None:
    network: Any = transformer()
    attention = network.blocks[0].attn
    # Every token looks at all alike, at values of about 1 and -1: codes at the ends of both factors' ranges.
    with torch.no_grad():
        attention.qkv.weight.mul_(1e-3)
        attention.qkv.bias.chunk(3)[2].copy_(torch.tensor([-1.01, 1.0]).repeat_interleave(64))
    model = quantize(network, PICTURES, bits=[["w8a8"]])
    draft = Draft(model, PICTURES, ["w8a8"], early=backend == "onnx")
    if backend == "openvino":  # which multiplies integers where the second factor is s8 but for its offset
        assert draft.values["w8a8"]["quantizers.blocks_0_attn_matmul2_b.zero_point"] == 128
    with at_bits(model, "w8a8"):
        steps, _ = layer_steps(draft, "w8a8", backend, portable=True)
    assert steps["blocks.0.attn.matmul2"] <= 1


def test_the_option_of_onnx_runtime_opens_an_export(tmp_path: Path) -> None:
    import onnxruntime as ort

    model, x = every_layer()
    write_export(model, tmp_path / "out", x, ["w8a8"])
    assert "session.x64quantprecision=1" in read_manifest(tmp_path / "out")["old_processors"]
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    opened = ort.InferenceSession(tmp_path / "out" / "w8a8.onnx", options, providers=["CPUExecutionProvider"])
    found = opened.run(None, {"images": x.numpy()})[0]
    assert np.array_equal(found, Session(tmp_path / "out")(x.numpy()))


def test_an_export_with_products_promises_nothing_of_that_option(tmp_path: Path) -> None:
    write_export(small_model(), tmp_path / "out", images(), ["w8a8"])
    told = read_manifest(tmp_path / "out")["old_processors"]
    assert "exact only in Session" in told  # the option leaves the product before a softmax as it is


def test_a_split_weight_is_the_sum_of_two_small_ones() -> None:
    draft = Draft(small_model(), images(), ["w8a8"], early=False)
    before = draft.static("w8a8", clip="values")
    codes = {t.name: numpy_helper.to_array(t) for t in before.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in as_portable(before, "openvino").graph.initializer}
    wide = [name for name in codes if f"{name}.rest" in after]
    assert "layer1.0.conv1.weight" in wide
    for name in wide:
        near, rest = after[name].astype(int), after[f"{name}.rest"].astype(int)
        assert max(np.abs(near).max(), np.abs(rest).max()) <= 64 and np.array_equal(near + rest, codes[name])


@pytest.mark.parametrize("cause", ["processor", "images", "numbers"])
def test_a_refusal_tells_its_cause(cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = export.layer_steps

    def steps(draft: Draft, name: str, backend: str = "onnx", *, portable: bool = False):  # type: ignore[no-untyped-def]
        return right(draft, name, backend, portable=True) if cause == "processor" else ({"fc": 9.0}, None)

    def compare(draft: Draft, session: Session) -> dict[str, object]:
        far = 0.2 if cause == "images" else 9.0
        report = export.WidthReport(16, 50.0, 2.0, far, "fc", None, {})
        return {"w8a8": report}

    monkeypatch.setattr(export, "layer_steps", steps)
    monkeypatch.setattr(export, "compare", compare)
    with pytest.raises(ExportError) as error:
        write_export(small_model(), tmp_path / "out", images(), ["w8a8"])
    expected = {
        "processor": "It is this processor",
        "images": "Check that they are real ones",
        "numbers": "Neither form of integer arithmetic agrees",
    }
    assert expected[cause] in str(error.value) and not (tmp_path / "out").exists()


def test_an_unknown_kind_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="signed, portable"):
        write_export(small_model(), tmp_path / "out", images(), weights="unsigned")


EMULATED = """
import sys, numpy as np
from ptmq_lightning.export.portable import saturates
from ptmq_lightning.export.session import Session
x = np.load(sys.argv[1] + "/x.npy")
for backend in ("onnx", "openvino"):
    assert saturates(backend), backend
for name in sys.argv[2:]:
    session = Session(sys.argv[1] + "/" + name)
    for width in session.widths:
        session.switch(width)
        np.save(f"{sys.argv[1]}/{name}.{width}.npy", session(x))
"""


@pytest.mark.slow
@SIGNED
def test_an_emulated_processor_without_vnni_gives_the_same_logits(processor: str, tmp_path: Path) -> None:
    qemu = shutil.which("qemu-x86_64")
    if qemu is None or processor != "own":
        pytest.skip("needs qemu-x86_64 (Debian's package qemu-user), once")
    model, x = signed_factors()
    np.save(tmp_path / "x.npy", x.numpy())
    for form, backend in FORMS:
        write_export(model, tmp_path / f"{backend}_{form}", x, WIDTHS, form=form, backend=backend)
    names = [f"{backend}_{form}" for form, backend in FORMS]
    subprocess.run(
        [qemu, "-cpu", "Haswell", sys.executable, "-c", EMULATED, str(tmp_path), *names],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    for name in names:
        session = Session(tmp_path / name, portable=True)
        for width in WIDTHS:
            session.switch(width)
            found, own = np.load(tmp_path / f"{name}.{width}.npy"), session(x.numpy())
            error = np.sqrt(np.square(found - own).mean()) / own.std()
            assert error == 0 if name.startswith("onnx") else error < 0.05, (name, width)
