"""What one fit is about: a whole block (BRECQ, QDrop, PTMQ), or one layer with its activation function (AdaRound, §3).

A block stays the container in both cases, as its shortcuts cross its layers. As layers, its weight layers are fitted
one after the other, in the order of execution: a layer's unit is the block's graph from the tensor that the layer reads
to the output of the activation function that alone reads the layer (to the layer's own output where something else
does, such as the addition of a shortcut). Inputs and target come from running the block's graph up to that tensor, at
the widths of the streams and in float: nothing else tells a unit from a block. Products of two activations have no
rounding and are no units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import fx, nn

from ptmq_lightning.models.flow import kind
from ptmq_lightning.runtime.layers import ActivationQuantizer, QuantConv2d, QuantLinear
from ptmq_lightning.runtime.model import quantizers_of

KINDS = ("block", "layer")
ACTIVATIONS = frozenset(
    {"ReLU", "ReLU6", "GELU", "SiLU", "Hardswish", "Hardtanh", "LeakyReLU", "Sigmoid", "Tanh", "ELU", "Mish", "PReLU"}
    | {"relu", "relu_", "relu6", "gelu", "silu", "hardswish", "hardtanh", "leaky_relu", "sigmoid", "tanh", "elu"}
)


@dataclass(frozen=True)
class Unit:
    """name; module: what is fitted (one tensor to one tensor); before: from the block's input to the unit's, None where
    they are the same tensor. behind: from the unit's output and the block's input to the block's output, None where the
    unit is the block."""

    name: str
    module: nn.Module
    before: nn.Module | None = None
    behind: nn.Module | None = None

    def settle(self, block: nn.Module) -> None:
        """Give the committed activation quantizers to the block (its layers are shared, weights and all)."""
        if self.module is not block:
            for path, quantizer in list(quantizers_of(self.module)):
                block.set_submodule(path, quantizer)


def units(block: nn.Module, name: str, what: str) -> Iterator[Unit]:
    """The units of a block, each cut when its turn comes: what was committed before it is in it."""
    if what == "block":
        yield Unit(name, block)
        return
    assert isinstance(block, fx.GraphModule)
    for node in list(block.graph.nodes):
        if node.op == "call_module" and isinstance(block.get_submodule(node.target), (QuantConv2d, QuantLinear)):
            source, last, (entry, output) = _source(block, node), _last(block, node), _ends(block)
            before = None if source is entry else _between(block, [entry], source)
            behind = _between(block, [last, entry], output.all_input_nodes[0])
            yield Unit(str(node.target), _between(block, [source], last), before, behind)


def _source(block: fx.GraphModule, layer: fx.Node) -> fx.Node:
    """The tensor the layer's unit starts from: in front of the quantizer that the layer owns, else what it reads."""
    reads = layer.all_input_nodes[0]
    module = block.get_submodule(str(reads.target)) if reads.op == "call_module" else None
    own = isinstance(module, ActivationQuantizer) and module.owner == layer.target
    return reads.all_input_nodes[0] if own else reads


def _last(block: fx.GraphModule, layer: fx.Node) -> fx.Node:
    """The activation function that alone reads the layer, else the layer."""
    readers = list(layer.users)
    alone = len(readers) == 1 and readers[0].op != "output" and readers[0].all_input_nodes == [layer]
    return readers[0] if alone and kind(block, readers[0]) in ACTIVATIONS else layer


def _ends(block: fx.GraphModule) -> tuple[fx.Node, fx.Node]:
    """The block's input, and the node that gives its output."""
    nodes = list(block.graph.nodes)
    return next(node for node in nodes if node.op == "placeholder"), nodes[-1]


def _between(block: fx.GraphModule, first: Sequence[fx.Node], last: fx.Node) -> fx.GraphModule:
    """The graph from the tensors `first`, which become the inputs, to `last`; modules shared."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"x{i}") for i, node in enumerate(first)}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            for needed in node.all_input_nodes:
                copied(needed)
            copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    graph.output(copied(last))
    graph.lint()
    return fx.GraphModule(block, graph).eval()
