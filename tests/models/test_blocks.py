from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.models import blocks, graph
from ptmq_lightning.runtime.errors import ModelError


def test_the_chain_of_blocks_is_bitwise_the_network(case):
    chain = nn.Sequential(*[block.module for block in blocks.cut(case.traced, case.images)])
    with torch.no_grad():
        assert torch.equal(chain(case.images), case.logits)
        assert torch.equal(chain(case.images[:1]), case.module(case.images[:1]))


def test_every_layer_is_in_exactly_one_block(case):
    found = [layer for block in blocks.cut(case.traced, case.images) for layer in block.layers]
    calls = [str(n.target) for n in case.traced.graph.nodes if n.op == "call_module"]
    assert sorted(found) == sorted(
        path for path in calls if isinstance(case.traced.get_submodule(path), (nn.Conv2d, nn.Linear))
    )
    assert not blocks.opaque_layers(case.traced, case.module)


def test_every_matrix_product_is_in_exactly_one_block(case):
    inside = [n for block in blocks.cut(case.traced, case.images) for n in block.module.graph.nodes]
    count = [node.target for node in inside].count(torch.matmul)
    assert count == [node.target for node in case.traced.graph.nodes].count(torch.matmul)


def test_a_block_has_one_input_and_one_output_with_a_row_per_image(case):
    x = case.images
    for block in blocks.cut(case.traced, case.images):
        assert [node.op for node in block.module.graph.nodes].count("placeholder") == 1
        with torch.no_grad():
            x = block.module(x)
        assert isinstance(x, Tensor) and len(x) == len(case.images)


def test_block_names_are_unique(case):
    names = [block.name for block in blocks.cut(case.traced, case.images)]
    assert len(set(names)) == len(names)


EXPECTED = {
    "cifar_resnet20": ["stem", *(f"layer{s}.{b}" for s in (1, 2, 3) for b in range(3)), "head"],
    "vit_t": ["stem", *(f"blocks.{i}" for i in range(12)), "head"],
    "resnet18": ["stem", *(f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in range(2)), "head"],
    "swin_t": [
        "stem", "layers.0.blocks.0", "layers.0.blocks.1", "layers.1.downsample",
        "layers.1.blocks.0", "layers.1.blocks.1",
        "layers.2.downsample", *(f"layers.2.blocks.{i}" for i in range(6)), "layers.3.downsample", "layers.3.blocks.0",
        "layers.3.blocks.1", "head",
    ],
}  # fmt: skip


def test_blocks_are_named_by_module_path(case):
    if case.name in EXPECTED:
        assert [block.name for block in blocks.cut(case.traced, case.images)] == EXPECTED[case.name]


def test_a_depthwise_convolution_shares_a_block_with_the_pointwise_one_behind_it(case):
    if case.name == "mobileone_s0":
        layers = {block.name: block.layers for block in blocks.cut(case.traced, case.images)}
        assert [path.removesuffix(".reparam_conv") for path in layers["stages.1.2"]] == ["stages.1.2", "stages.1.3"]


def test_a_block_ends_after_its_activation():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    images = torch.randn(2, 3, 6, 6)
    cut = blocks.cut(graph.trace(module, (3, 6, 6)), images)
    assert [block.layers for block in cut] == [("0",), ("2",), ("5",)]
    assert [list(block.module.graph.nodes)[-2].target for block in cut] == ["1", "4", "5"]


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.unused = nn.Conv2d(3, 8, 1), nn.Linear(2, 2)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 8, batch_first=True)  # an encoder's attention is opened

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = self.decoder(x, x)
        return torch.einsum("btc,btc->bc", x, x)


def test_what_tracing_cannot_see_is_reported():
    module = Hidden().eval()
    assert blocks.opaque_layers(graph.trace(module, (3, 4, 4)), module) == [
        "unused: not called on the image",
        *(
            f"decoder.{layer}: hidden inside decoder"
            for layer in ("self_attn.out_proj", "multihead_attn.out_proj", "linear1", "linear2")
        ),
        ": einsum is called as a function",
    ]


def test_a_network_without_layers_is_refused():
    with pytest.raises(ModelError) as caught:
        blocks.cut(
            graph.trace(nn.Sequential(nn.ReLU(), nn.Flatten()), (3, 4, 4)), torch.zeros(1, 3, 4, 4), name="empty"
        )
    assert str(caught.value) == (
        "the network 'empty' has no convolution or linear layer that tracing can see; expected at least one. See "
        "blocks.opaque_layers for what is hidden."
    )


def test_a_convolution_over_one_axis_is_reported_as_a_layer_in_float():
    module = nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2)).eval()
    traced = graph.trace(module, (3, 4, 4))
    assert blocks.opaque_layers(traced, module) == ["1: a Conv1d is not quantized"]


def test_a_transposed_convolution_is_a_layer_of_a_block():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2), nn.Flatten(), nn.Linear(256, 2)).eval()
    traced = graph.trace(module, (3, 4, 4))
    assert blocks.opaque_layers(traced, module) == []
    assert [layer for block in blocks.cut(traced, torch.zeros(2, 3, 4, 4)) for layer in block.layers] == ["0", "1", "3"]
