"""What one fit is about: a whole block (BRECQ, QDrop, PTMQ), or one layer with its activation function (AdaRound, §3).

A block stays the container in both cases, as its shortcuts cross its layers. As layers, its weight layers are fitted
one after the other, in the order of execution: a layer's unit is the block's graph from the tensor that the layer reads
to the output of the activation function that alone reads the layer (to the layer's own output where something else
does, such as the addition of a shortcut). Inputs and target come from running the block's graph up to that tensor, at
the widths of the streams and in float: nothing else tells a unit from a block. Products of two activations have no
rounding and are no units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx, nn

from ptmq_lightning.models.flow import kind
from ptmq_lightning.models.nodes import part
from ptmq_lightning.runtime.layers import ActivationQuantizer, WeightLayer
from ptmq_lightning.runtime.model import LayerInfo, ModelBlock, quantizers_of
from ptmq_lightning.runtime.registry import Registry

UNITS: Registry[type[UnitKind]] = Registry("unit")
ACTIVATIONS = frozenset(
    {"ReLU", "ReLU6", "GELU", "SiLU", "Hardswish", "Hardtanh", "LeakyReLU", "Sigmoid", "Tanh", "ELU", "Mish", "PReLU"}
    | {"relu", "relu_", "relu6", "gelu", "silu", "hardswish", "hardtanh", "leaky_relu", "sigmoid", "tanh", "elu"}
)


@dataclass(frozen=True)
class Unit:
    """What one fit is about.

    Attributes:
        name: the block's, or the layer's.
        module: one tensor to one tensor.
        layers: its rows of the layer table.
        rest: from the unit's output to the logits; where the unit is a layer, its first module takes the block's input
            besides.
        block: that the unit lies in.
        before: from the block's input to the unit's; None where they are the same tensor.
    """

    name: str
    module: nn.Module
    layers: Mapping[str, LayerInfo]
    rest: nn.Sequential
    block: ModelBlock
    before: nn.Module | None = None

    @property
    def whole(self) -> bool:
        """Whether the unit is the block itself."""
        return self.module is self.block.module

    def settle(self) -> None:
        """Give the committed activation quantizers to the block (its layers are shared, weights and all)."""
        if not self.whole:
            for path, quantizer in list(quantizers_of(self.module)):
                self.block.module.set_submodule(path, quantizer)


class UnitKind(ABC):
    """A way to take a block apart. Variants join by `@UNITS.register(name)`."""

    @staticmethod
    @abstractmethod
    def units(block: ModelBlock, rest: nn.Sequential) -> Iterator[Unit]:
        """The units of a block, each cut when its turn comes: what was committed before it is in it. rest: the blocks
        behind this one."""

    @staticmethod
    @abstractmethod
    def count(layers: Sequence[LayerInfo]) -> int:
        """Units among the layers of a number of blocks."""


@UNITS.register("block")
class WholeBlock(UnitKind):
    @staticmethod
    def units(block: ModelBlock, rest: nn.Sequential) -> Iterator[Unit]:
        yield Unit(block.name, block.module, block.layers, rest, block)

    @staticmethod
    def count(layers: Sequence[LayerInfo]) -> int:
        return len({layer.block for layer in layers})


@UNITS.register("layer")
class EachLayer(UnitKind):
    @staticmethod
    def units(block: ModelBlock, rest: nn.Sequential) -> Iterator[Unit]:
        gm = block.module
        assert isinstance(gm, fx.GraphModule)
        entry, output = next(iter(gm.graph.find_nodes(op="placeholder"))), next(iter(gm.graph.find_nodes(op="output")))
        for node in list(gm.graph.nodes):
            if node.op == "call_module" and isinstance(gm.get_submodule(node.target), WeightLayer):
                name, source, last = str(node.target), _source(gm, node), _last(gm, node)
                before = None if source is entry else part(gm, [entry], [source])
                behind = part(gm, [last, entry], output.all_input_nodes)
                own = {name: block.layers[name]}
                yield Unit(name, part(gm, [source], [last]), own, nn.Sequential(behind, *rest), block, before)

    @staticmethod
    def count(layers: Sequence[LayerInfo]) -> int:
        return sum(bool(layer.weights) for layer in layers)


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
