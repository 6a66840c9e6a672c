"""Every conversion of an operation to ONNX computes what torch computes, at other batch sizes too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq_lightning.compose.library import quantize
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.foresee import float_graph, require_exportable, unexportable
from ptmq_lightning.models import blocks, fold, graph
from ptmq_lightning.runtime.errors import ExportError

# Float32 sums in another order; values are of order one.
NEAR = 1e-5


class Around(nn.Module):
    """One operation (or layer) between a convolution and a linear layer: (B, 4, 6, 8) -> 3 logits."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.what = what
        with torch.no_grad():
            made = what(self.conv(torch.zeros(2, 2, 6, 8)))
        self.fc = nn.Linear(made[0].numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.what(self.conv(x)).flatten(1))


def chain_of(network: nn.Module) -> tuple[list[Any], Tensor]:
    x = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    gm = graph.trace(network.eval(), (2, 6, 8))
    fold.fold(gm)
    return [block.module for block in blocks.cut(gm, x)], x


MASK = torch.arange(8) > 3
INT = torch.tensor([[1], [2], [3], [1]]).reshape(1, 4, 1, 1)
TOKEN = torch.ones(4, 6, 4)
PICK = torch.tensor([2, 0, 3])


def tokens(x: Tensor) -> Tensor:
    """(B, 4, 6, 8) -> (B, 48, 4)."""
    return x.flatten(2).transpose(1, 2)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "split into equal pieces": lambda x: torch.cat(x.split(2, 1)[::-1], 1),
    "split into given pieces": lambda x: sum(p.mean(1) for p in x.split([1, 3], dim=1)),
    "split with a rest": lambda x: sum(p.mean(2) for p in x.split(4, 2)),
    "torch.split": lambda x: torch.split(x, [3, 1], 1)[0],
    "chunk into unequal pieces": lambda x: x.chunk(4, 2)[-1],
    "tokens chunk": lambda x: tokens(x).chunk(2, -1)[1],
    "unbind": lambda x: x.unbind(2)[1] - x.unbind(2)[0],
    "group_norm": lambda x: F.group_norm(x, 2, torch.tensor([1.0, 2, 3, 4]), torch.ones(4)),
    "group_norm without weights": lambda x: F.group_norm(x, 4),
    "instance_norm": F.instance_norm,
    "layer_norm": lambda x: F.layer_norm(x, (6, 8)),
    "rms_norm": lambda x: F.rms_norm(tokens(x), (4,), torch.tensor([1.0, 2, 3, 4]), 1e-6),
    "rms_norm of the default eps": lambda x: F.rms_norm(tokens(x), (4,)),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "normalize by sums": lambda x: F.normalize(x, p=1.0, dim=1),
    "norm": lambda x: x.norm(p=2, dim=(2, 3), keepdim=True),
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "sum": lambda x: x.sum((2, 3)),
    "sum of a dimension kept": lambda x: torch.sum(x, 1, keepdim=True),
    "mean": lambda x: x.mean(dim=(-2, -1)),
    "var": lambda x: x.var((2, 3), unbiased=False, keepdim=True),
    "std": lambda x: x.std(2),
    "amax": lambda x: x.amax((2, 3)),
    "max along an axis": lambda x: x.max(dim=1, keepdim=True)[0],
    "max of two": lambda x: torch.max(x, x.flip(1)),
    "maximum": lambda x: torch.maximum(x, -x),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool2d without the padding": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "avg_pool2d with ceil_mode": lambda x: F.avg_pool2d(x, (2, 2), ceil_mode=True, count_include_pad=False),
    "adaptive_avg_pool2d to one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_avg_pool2d over equal windows": lambda x: F.adaptive_avg_pool2d(x, (3, 4)),
    "adaptive_avg_pool2d over unequal windows": lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
    "adaptive_avg_pool2d to more": lambda x: F.adaptive_avg_pool2d(x, (7, 9)),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, (2, 2)),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "pad with zeros": lambda x: F.pad(x, (1, 2, 0, 1)),
    "pad with a value": lambda x: F.pad(x, (1, 2, 0, 1), value=-3.0),
    "pad by reflection": lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect"),
    "interpolate to the nearest": lambda x: F.interpolate(x, scale_factor=2),
    "interpolate to a size": lambda x: F.interpolate(x, size=(9, 12), mode="nearest"),
    "interpolate bilinearly": lambda x: F.interpolate(x, size=(9, 5), mode="bilinear"),
    "interpolate with aligned corners": lambda x: F.interpolate(x, size=(9, 13), mode="bilinear", align_corners=True),
    "interpolate bicubically": lambda x: F.interpolate(x, scale_factor=(2, 3), mode="bicubic"),
    "index of one": lambda x: x[:, 2],
    "index from the end": lambda x: x[:, -1, 1:],
    "index with Ellipsis": lambda x: x[..., ::2],
    "index with None": lambda x: x[:, None, 1, ..., None],
    "index by a list": lambda x: x[:, [2, 0]],
    "index by a tensor": lambda x: x[:, PICK],
    "index_select": lambda x: x.index_select(1, PICK),
    "select": lambda x: x.select(2, -1),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "repeat with a new axis": lambda x: x + TOKEN.repeat(x.shape[0], 1, 1, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(3, dim=1),
    "expand_as": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "addcmul": lambda x: torch.addcmul(torch.ones(1, 4, 1, 1), torch.full((4, 1, 1), 2.0), x),
    "addcmul by a value": lambda x: torch.addcmul(x, x, x, value=0.5),
    "unfold": lambda x: F.unfold(x, 3, padding=1, stride=2),
    "windows of an axis": lambda x: x.unfold(2, 3, 1),
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "flip": lambda x: x.flip(2),
    "squeeze": lambda x: x.mean(1, keepdim=True).squeeze(1),
    "squeeze of all": lambda x: x.unsqueeze(2).squeeze(2),
    "movedim": lambda x: x.movedim(1, -1),
    "unflatten": lambda x: x.unflatten(1, (2, 2)).transpose(1, 2),
    "stack": lambda x: torch.stack([x, 2 * x], 1),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp from below": lambda x: x.clamp(min=0.1),
    "clamp from above": lambda x: torch.clamp(x, max=0.1),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])),
    "elu": F.elu, "selu": F.selu, "celu": F.celu, "gelu": F.gelu, "silu": F.silu, "mish": F.mish, 
    "glu": lambda x: F.glu(x, 1),
    "gelu by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus, "softsign": F.softsign, "logsigmoid": F.logsigmoid, "hardtanh": F.hardtanh,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "relu6": F.relu6, "tanh": torch.tanh,
    "exp": torch.exp, "square": torch.square, "rsqrt": lambda x: (x.abs() + 1).rsqrt(), "cos": torch.cos,
    "round": lambda x: torch.floor(x * 3), "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "a factor of whole numbers": lambda x: x * INT,
    "a number less a tensor": lambda x: 1 - x,
    "a power": lambda x: x.abs() ** 1.5,
    "add with alpha": lambda x: torch.add(x, x, alpha=2),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 2),
    "topk": lambda x: x.topk(3, dim=-1)[0],
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "matmul": lambda x: tokens(x) @ x.flatten(2),
    "bmm": lambda x: torch.bmm(tokens(x), x.flatten(2)),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x)),
}  # fmt: skip
LAYERS: dict[str, nn.Module] = {
    "same padding": nn.Conv2d(4, 4, (3, 4), padding="same"),
    "Conv1d": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3, padding=1, groups=2)),
    "ConvTranspose2d": nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1, groups=2),
    "GroupNorm": nn.GroupNorm(2, 4),
    "InstanceNorm2d": nn.InstanceNorm2d(4, affine=True),
    "InstanceNorm2d with statistics": nn.InstanceNorm2d(4, track_running_stats=True),
    "RMSNorm": nn.RMSNorm(8),
    "PReLU": nn.PReLU(4), "PReLU of one": nn.PReLU(), "LeakyReLU": nn.LeakyReLU(0.3), "SELU": nn.SELU(), 
    "GLU": nn.GLU(1),
    "LogSoftmax": nn.LogSoftmax(1), "Softmax2d": nn.Softmax2d(), "Softplus": nn.Softplus(2.0),
    "ReflectionPad2d": nn.ReflectionPad2d(2), "ReplicationPad2d": nn.ReplicationPad2d((1, 0, 2, 1)),
    "ConstantPad2d": nn.ConstantPad2d(1, 2.5), "ZeroPad2d": nn.ZeroPad2d((1, 0, 2, 0)),
    "Upsample": nn.Upsample(scale_factor=2), "Upsample bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
    "UpsamplingBilinear2d": nn.UpsamplingBilinear2d(scale_factor=2),
    "PixelShuffle": nn.PixelShuffle(2), "PixelUnshuffle": nn.PixelUnshuffle(2), "Unfold": nn.Unfold(2),
    "AdaptiveAvgPool2d": nn.AdaptiveAvgPool2d((4, 3)), "AdaptiveMaxPool2d": nn.AdaptiveMaxPool2d(1),
    "AvgPool2d": nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), "Unflatten": nn.Unflatten(1, (2, 2)),
    "MultiheadAttention": nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(48, 2, 16, batch_first=True)),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("what", [*OPERATIONS.values(), *LAYERS.values()], ids=[*OPERATIONS, *LAYERS])
def test_a_converted_operation_computes_what_torch_computes(what: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = Around(what)
    chain, x = chain_of(network)
    require_exportable(chain, x)
    session = onnxruntime.InferenceSession(
        float_graph(chain, x).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for count in (1, 3):
        images = torch.randn(count, 2, 6, 8, generator=torch.Generator().manual_seed(count))
        (made,) = session.run(None, {"images": images.numpy()})
        wanted = network(images)
        assert torch.allclose(torch.from_numpy(made), wanted, rtol=NEAR, atol=NEAR * float(wanted.abs().max())), count


def test_all_operations_that_cannot_be_exported_are_named_at_once() -> None:
    def odd(x: Tensor) -> Tensor:
        return torch.cumsum(x, 1) + F.local_response_norm(x, 3)

    torch.manual_seed(0)
    chain, x = chain_of(Around(odd))
    with pytest.raises(ExportError) as error:
        require_exportable(chain, x)
    assert "cumsum" in str(error.value)
    assert len(unexportable(chain, x)) == 2


class Positions(nn.Module):
    """A product of an activation and a constant, as relative positions in attention have it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 1), nn.Linear(4 * 6 * 5, 3)
        self.relative = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.conv(x) @ self.relative.transpose(0, 1)).flatten(1))


def test_a_product_with_a_constant_runs_on_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    model = quantize(Positions().eval(), x, bits=[["w4a4"], ["w8a8"]])
    for report in write_export(model, tmp_path / "out", x, ["w4a4", "w8a8"]).values():
        assert report.largest_step is not None and report.largest_step <= 1
        assert report.logit_error < 0.1 and "MatMul" not in report.float_kernels


class ConvolvedKeys(nn.Module):
    """A product whose second factor comes straight out of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.q, self.k = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.fc((self.q(x).flatten(2) @ self.k(x).flatten(2).transpose(1, 2)).flatten(1))


def test_a_product_with_what_a_convolution_makes_runs_on_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    model = quantize(ConvolvedKeys().eval(), x, bits=[["w4a4"], ["w8a8"]])
    for form in ("static", "switchable"):
        for report in write_export(model, tmp_path / form, x, ["w4a4", "w8a8"], form=form).values():
            assert report.largest_step is not None and report.largest_step <= 1
            assert report.float_kernels == {}
