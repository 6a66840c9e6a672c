"""A network with a transposed convolution goes the whole way: quantized, fitted, saved, switched, exported."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ptmq_lightning as ptmq
from ptmq_lightning.artifact.verify import verify
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.foresee import unexportable
from ptmq_lightning.export.session import Session
from ptmq_lightning.models import blocks, fold, graph
from ptmq_lightning.reconstruction.correction import correct_biases
from ptmq_lightning.runtime.model import MultiBitModel, select

BITS = [["w2a4"], ["w4a4"], ["w8a8"]]
FORMS = {
    "onnx": {}, "onnx multi": {"form": "multi"}, "onnx multi portable": {"form": "multi", "weights": "portable"},
    "onnx switchable": {"form": "switchable"}, "onnx portable": {"weights": "portable"},
    "onnx switchable portable": {"form": "switchable", "weights": "portable"},
    "openvino": {"backend": "openvino"}, "openvino portable": {"backend": "openvino", "weights": "portable"},
}  # fmt: skip


class Decoder(nn.Module):
    """(B, 2, 6, 8) -> 3 logits: a convolution, a transposed one with a norm behind it, a convolution, pooling."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 8, **options)
        self.norm = nn.BatchNorm2d(8)
        self.out = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(self.down(x).relu())).relu()
        return self.fc(8 * self.out(x).relu().mean((2, 3)))


def decoder(**options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 2, 6, 8) * torch.rand(16, 2, 1, 1) * 3
    defaults = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
    network = Decoder(**(options or defaults))
    network(x)  # the norm's statistics
    return network.eval(), x


@cache
def fitted() -> tuple[MultiBitModel, Tensor]:
    network, x = decoder()
    model = ptmq.quantize(network, x, bits=BITS)
    ptmq.reconstruct(model, x, iters=3)
    return model, x


def test_it_is_a_quantized_layer_with_output_channels_first() -> None:
    model, _ = fitted()
    row = model.layers["up"]
    assert (row.kind, row.weight_shape, row.pin_w, row.pin_a) == ("conv_transpose", (8, 2, 3, 3), None, None)
    assert row.weights == decoder()[0].up.weight.numel()  # type: ignore[union-attr, operator]
    assert [*model.layers] == ["down", "up", "out", "fc"]
    assert not any(isinstance(m, (nn.ConvTranspose2d, nn.BatchNorm2d)) for m in model.modules())


@torch.no_grad()
def test_its_float_network_is_the_one_that_was_given() -> None:
    network, x = decoder()
    model = ptmq.quantize(network, x, bits=BITS)
    model.switch(None)
    wanted = network(x)
    assert float((model(x) - wanted).abs().max() / wanted.std()) < 0.01  # an eighth of an 8-bit step


@torch.no_grad()
def test_it_is_closer_to_the_float_network_the_more_bits_it_has() -> None:
    model, x = fitted()
    wanted = decoder()[0](x)
    errors = []
    for width in ("w2a4", "w4a4", "w8a8"):
        model.switch(width)
        errors.append(float((model(x) - wanted).std() / wanted.std()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.05


@torch.no_grad()
@pytest.mark.parametrize("packing", ["latent", "auto"])
def test_it_is_saved_and_bit_equal_after_load(packing: str, tmp_path: Path) -> None:
    model, x = fitted()
    ptmq.save(model, tmp_path / "model", packing=packing)
    loaded = ptmq.load(tmp_path / "model")
    assert [*verify(tmp_path / "model")]
    for width in ("w2a4", "w4a4", "w8a8"):
        model.switch(width)
        loaded.switch(width)
        assert torch.equal(model(x), loaded(x)), width


@torch.no_grad()
def test_a_bias_per_width_keeps_its_mean_output() -> None:
    network, x = decoder()
    model = ptmq.quantize(network, x, bits=BITS)
    index = model.layers["up"].block
    select(model, None)
    for block in model.blocks[:index]:
        x = block(x)
    block: Any = model.blocks[index]
    means: dict[int | None, Tensor] = {}
    handle = block.up.register_forward_hook(
        lambda layer, _inputs, out: means.__setitem__(layer.weight.bits, out.mean((0, 2, 3)))
    )
    correct_biases(block, x, batch=8)
    for bits in (None, 2, 4, 8):
        block.up.weight.select(bits)
        block(x)
    handle.remove()
    scale = float(means[None].abs().max())
    for bits in (2, 4, 8):
        assert torch.allclose(means[bits], means[None], atol=1e-5 * scale, rtol=1e-5), bits


@pytest.mark.parametrize("how", [{"method.unit": "layer"}, {"rounding": "flexround"}, {"rounding": "offset"}])
def test_other_units_and_roundings_fit_it(how: dict[str, str]) -> None:
    network, x = decoder()
    model = ptmq.quantize(network, x, bits=BITS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if ".up." in name}
    ptmq.reconstruct(model, x, iters=2, overrides=[f"{key}={value}" for key, value in how.items()])
    after = {name: tensor for name, tensor in model.state_dict().items() if ".up." in name}
    assert any(name not in before or not torch.equal(before[name], tensor) for name, tensor in after.items())


@pytest.mark.runtimes
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_it_runs_on_integers_in_every_export(options: dict[str, str], tmp_path: Path) -> None:
    model, x = fitted()
    stem = {"Convolution": 1} if options.get("backend") == "openvino" else {}  # which reads the image, in float
    for width, report in write_export(model, tmp_path / "out", x, ["w8a8", "w4a4"], **options).items():
        assert report.largest_step is not None and report.largest_step <= 1, width
        assert report.logit_error < 0.1 and report.float_kernels == stem, width


SHAPES: dict[str, dict[str, Any]] = {
    "a kernel smaller than the stride": {"kernel_size": 1, "stride": 3},
    "more padding than the kernel is wide": {"kernel_size": 2, "stride": 3, "padding": 2, "output_padding": (1, 2)},
    "no stride": {"kernel_size": (2, 3), "padding": (0, 1), "bias": False},
    "another stride along each axis": {"kernel_size": 4, "stride": (2, 1), "padding": 1, "groups": 4},
    "dilation": {"kernel_size": 2, "stride": 2, "dilation": 3, "padding": 1},
}


@torch.no_grad()
@pytest.mark.runtimes
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_an_export_of_any_shape_agrees(options: dict[str, Any], tmp_path: Path) -> None:
    network, x = decoder(**options)
    model = ptmq.quantize(network, x, bits=BITS)
    report = write_export(model, tmp_path / "out", x, ["w8a8"])["w8a8"]
    assert report.largest_step is not None and report.largest_step <= 1
    assert report.logit_error < 0.1 and report.float_kernels == {}
    assert Session(tmp_path / "out")(x[:3]).shape == (3, 3)  # another batch than it was written with


def test_that_it_can_be_exported_is_known_before_the_fit() -> None:
    network, x = decoder()
    gm = graph.trace(network, (2, 6, 8))
    fold.fold(gm)
    assert unexportable([block.module for block in blocks.cut(gm, x)], x) == []
