from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ptmq_lightning as ptmq
from ptmq_lightning.models import blocks, graph
from ptmq_lightning.runtime.errors import ModelError


def test_the_traced_network_is_bitwise_the_network(case):
    with torch.no_grad():
        assert torch.equal(case.traced(case.images), case.logits)


def test_the_batch_size_is_free(case):
    with torch.no_grad():
        for images in (case.images[:1], torch.cat([case.images, case.images, case.images[:1]])):
            assert torch.equal(case.traced(images), case.module(images))


def test_the_graph_holds_plain_torch_only(case):
    for node in case.traced.graph.nodes:
        if node.op == "call_module":
            assert type(case.traced.get_submodule(node.target)).__module__.startswith("torch.nn.modules"), node.target
        if node.op == "call_function":
            assert (getattr(node.target, "__module__", None) or "torch").partition(".")[0] in ("torch", "_operator")


def test_no_operation_works_in_place(case):
    for node in case.traced.graph.nodes:
        assert not node.kwargs.get("inplace"), node
        assert not (node.op == "call_method" and node.target.endswith("_")), node
    assert not any(getattr(module, "inplace", False) for module in case.traced.modules())


def test_dropout_and_identity_are_gone(case):
    assert not any(isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)) for module in case.traced.modules())


def test_tracing_leaves_the_network_as_it_was(case):
    with torch.no_grad():
        assert torch.equal(case.module(case.images), case.logits)
    assert not any(value.is_meta for value in case.module.state_dict().values())


@pytest.mark.parametrize("case", [pytest.param(("vit_t", 64, {"img_size": 64}), id="vit_t")], indirect=True)
def test_attention_is_two_matrix_products_around_a_softmax(case):
    functions = [node.target for node in case.traced.graph.nodes if node.op == "call_function"]
    assert functions.count(torch.matmul) == 24
    assert functions.count(F.softmax) == 12


class _Functional(nn.Module):
    """Weights held as plain parameters, one linear called twice, an in-place statement without assignment."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 4, bias=False)
        self.bias = nn.Parameter(torch.randn(2))
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        x = F.linear(x.flatten(2).transpose(1, 2), self.qkv.weight, torch.cat([self.bias, self.bias]))
        x.mul_(scale)
        x = self.fc(self.fc(x)).clone() if x.shape[1] > 3 else x
        return x @ x.transpose(-2, -1)


@pytest.fixture
def functional() -> nn.Module:
    return _Functional().eval()


def test_a_linear_called_as_a_function_becomes_a_module(functional):
    traced = graph.trace(functional, (4, 2, 2))
    images = torch.randn(5, 4, 2, 2)
    assert isinstance(traced.get_submodule("qkv"), nn.Linear)
    assert traced.get_submodule("qkv").bias.shape == (4,)
    with torch.no_grad():
        assert torch.equal(traced(images), functional(images))


def test_a_layer_called_twice_becomes_two_layers(functional):
    traced = graph.trace(functional, (4, 2, 2))
    cut = blocks.cut(traced, torch.randn(1, 4, 2, 2))
    assert [layer for block in cut for layer in block.layers] == ["qkv", "fc", "fc_1"]


def test_a_network_that_looks_at_pixels_is_refused():
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)[0 : int(x.sum())]

    with pytest.raises(ModelError) as caught:
        graph.trace(Pixels(), (3, 4, 4))
    assert str(caught.value) == (
        "the network Pixels cannot be traced at input size (3, 4, 4): TypeError: int() argument must be a string, a "
        "bytes-like object or a real number, not '_Proxy'. Expected a network whose operations do not depend on the "
        "values of the image; check the input size, or choose another network."
    )


def test_a_network_that_fixes_the_batch_is_refused():
    class Batch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).repeat(1, len(x) ** 2, 1, 1)

    with pytest.raises(ModelError) as caught:
        graph.trace(Batch(), (3, 4, 4))
    assert str(caught.value) == (
        "operation repeat of module '' uses 4 at batch size 2 and 9 at batch size 3; expected a number proportional to "
        "the batch. Choose a network that works at every batch size."
    )


class _Up(nn.Module):
    """A transposed convolution to the size of what came before, and the same weights called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, 2, groups=2)
        self.down = nn.Conv2d(6, 4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(self.up(x[..., :3, :4], output_size=[8, 9]))
        return F.conv_transpose2d(y, self.up.weight, self.up.bias, 2, output_padding=1, groups=2)


def test_transposed_convolutions_are_modules_of_one_argument():
    torch.manual_seed(0)
    module, x = _Up().eval(), torch.randn(3, 4, 5, 6)
    gm = graph.trace(module, (4, 5, 6))
    called = [(node, gm.get_submodule(node.target)) for node in gm.graph.nodes if node.op == "call_module"]
    ups = [(node, layer) for node, layer in called if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.output_padding for _, layer in ups] == [(1, 0), (1, 1)]
    assert all(len(node.args) == 1 and not node.kwargs for node, _ in ups)
    assert torch.equal(gm(x), module(x))


class Attends(nn.Module):
    """torch's own attention, and the tokens that are chosen by a named field."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention, self.fc = nn.Conv2d(3, 8, 2, 2), nn.MultiheadAttention(8, 2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        chosen = tokens.norm(dim=-1).topk(4).indices
        return self.fc(tokens.gather(1, chosen.unsqueeze(-1).expand(-1, -1, 8)).mean(1))


def test_layers_of_torchs_attention_have_paths_of_their_own_and_are_quantized(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ptmq.quantize(Attends().eval(), images := torch.randn(4, 3, 8, 8), bits=[["w4a4"], ["w8a8"]])
    layers = list(model.layers)
    assert {"attention.layer", "attention.layer_1", "attention.layer_2", "attention.out_proj"} <= set(layers)
    loaded = ptmq.load(ptmq.save(model, tmp_path / "model"))
    assert torch.equal(loaded(images), model(images))
