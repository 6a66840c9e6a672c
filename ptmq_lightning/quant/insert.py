"""Quantizers into the blocks of a folded float network: every layer's weight, every input of a layer or matrix product.

Source: PTMQ §1.10, §1.11 (first/last rule), §2 (weights go to the latent grid here, once). One quantizer per tensor: it
sits behind the node that makes the tensor and serves all who read it in the block (shortcuts too); its owner is the
first layer that reads it. The image and the logits are not quantized (the image by placement.edge=8bit and
placement.deploy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import fx, nn

from ptmq_lightning.models.blocks import Block
from ptmq_lightning.models.nodes import module_of
from ptmq_lightning.quant.steps import StepSize, weight_grids
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.layers import QUANTIZABLE, ActivationQuantizer, QuantMatmul, twin_of
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.spec import MAX_BITS, MIN_BITS, BitWidth
from ptmq_lightning.runtime.weights import MultiBitWeight

EDGES = ("qdrop", "brecq", "8bit", "none")
LEVELS = ("uniform", "table")
DEPLOYS = ("none", "onnx")
ASYMMETRIC = (nn.GELU, nn.SiLU, nn.Hardswish, nn.Mish)
ASYMMETRIC_FUNCTIONS = (F.gelu, F.silu, F.hardswish, F.mish)


@dataclass(frozen=True)
class Override:
    """Layers whose name matches a shell pattern are fixed at these bits; None leaves that side to the edge rule."""

    pattern: str = key(help="shell pattern of layer names: blocks.0.*")
    w: int | None = key(None, "pinned weight width", least=MIN_BITS, most=MAX_BITS)
    a: int | None = key(None, "pinned activation width", least=MIN_BITS, most=MAX_BITS)


@dataclass(frozen=True)
class Placement:
    """Which widths a layer may take.

    edge: "qdrop" (first and last weights and the last input at 8 bits), "brecq" (the stem's output at 8 bits too),
    "8bit" (qdrop and the image at 8 bits), "none". gelu: levels of what leaves a GELU or one of its kind (ASYMMETRIC),
    "uniform" or "table" (quant.levels). deploy: a runtime whose own roundings are learned with the others
    (compose.deploy), or "none".
    """

    edge: str = key("qdrop", "first and last layer", choices=EDGES)
    softmax: int | None = key(
        8, "width of the attention probabilities; null: the drawn width", least=MIN_BITS, most=MAX_BITS
    )
    overrides: list[Override] = key(factory=list, help="widths of layers by name; the first pattern that fits wins")
    gelu: str = key("uniform", "levels of what leaves a GELU, SiLU or the like", choices=LEVELS)
    deploy: str = key(
        "none",
        "onnx: the image, convolutions before a shortcut and biases are rounded as an ONNX export rounds them, before "
        "anything is learned",
        choices=DEPLOYS,
    )

    def __post_init__(self) -> None:
        if self.edge not in EDGES:
            raise ConfigError(f"found placement.edge={self.edge!r}; expected one of {', '.join(EDGES)}.")
        if self.gelu not in LEVELS:
            raise ConfigError(f"found placement.gelu={self.gelu!r}; expected one of {', '.join(LEVELS)}.")
        if self.deploy not in DEPLOYS:
            raise ConfigError(f"found placement.deploy={self.deploy!r}; expected one of {', '.join(DEPLOYS)}.")

    def pins(self, name: str, *, first: bool, second: bool, last: bool) -> tuple[int | None, int | None]:
        """(pin_w, pin_a) of a layer. second: it reads the first quantized tensor."""
        edges = self.edge != "none"
        pin_w = 8 if edges and (first or last) else None
        pin_a = 8 if first or (edges and last) or (self.edge == "brecq" and second) else None
        for override in self.overrides:
            if fnmatchcase(name, override.pattern):  # a side that it leaves out stays with the edge rule
                return override.w or pin_w, override.a or pin_a
        return pin_w, pin_a


def insert(
    blocks: Iterable[Block],
    pairs: Iterable[BitWidth],
    placement: Placement,
    step_size: StepSize,
    *,
    progress: Callable[[int, int], None] = lambda done, layers: None,
) -> MultiBitModel:
    """Blocks of the float network -> a model with nearest rounding whose activation quantizers await calibration.

    Args:
        blocks: their modules are replaced in place.
        pairs: the widths that the model is prepared for.
        placement: which of them a layer may take.
        step_size: how the weights' step sizes are tied.
        progress: called with (weight layers done, weight layers) after each block.

    Raises:
        ConfigError: an override matches no layer.
    """
    blocks, pairs = list(blocks), tuple(pairs)
    weight_layers = _weight_layers(blocks)
    inserter = _Inserter(pairs, placement, step_size, weight_layers)
    done = 0
    for index, block in enumerate(blocks):
        inserter.block(index, block.module)
        done += len(block.layers)
        progress(done, len(weight_layers))
    unmatched = [o.pattern for o in placement.overrides if not any(fnmatchcase(n, o.pattern) for n in inserter.table)]
    if unmatched:
        raise ConfigError(
            f"found the layer pattern {unmatched[0]!r} in placement.overrides, which matches none of "
            f"{len(inserter.table)} layers; expected a pattern like {next(iter(inserter.table))!r}."
        )
    return MultiBitModel([b.module for b in blocks], [b.name for b in blocks], inserter.table, pairs)


def _weight_layers(blocks: Sequence[Block]) -> list[str]:
    return [name for block in blocks for name in block.layers]


class _Inserter:
    """What one walk over the blocks has to remember: the layer table, whether the first tensor was quantized, and
    which tensors of the current block are asymmetric, as what leaves a GELU is: small below zero, large above
    (`carried`: the block's input is)."""

    def __init__(
        self, pairs: tuple[BitWidth, ...], placement: Placement, step_size: StepSize, weight_layers: list[str]
    ) -> None:
        self.pairs, self.placement, self.step_size = pairs, placement, step_size
        self.first, self.last = weight_layers[0], weight_layers[-1]
        self.table: dict[str, LayerInfo] = {}
        self.quantizers = 0
        self.asymmetric: set[fx.Node] = set()
        self.carried = False

    def block(self, index: int, gm: fx.GraphModule) -> None:
        image = next(node for node in gm.graph.nodes if node.op == "placeholder") if index == 0 else None
        done: dict[fx.Node, str] = {}
        self.asymmetric = {node for node in gm.graph.nodes if self._is_asymmetric(gm, node)}
        self.carried = next(iter(gm.graph.find_nodes(op="output"))).args[0] in self.asymmetric
        for node in list(gm.graph.nodes):
            module = module_of(gm, node)
            if isinstance(module, QUANTIZABLE):
                info = self._layer(index, str(node.target), module)
                gm.set_submodule(info.name, self._quantized(module, info))
                self._input(gm, node, 0, info, done, image)
            elif node.op == "call_function" and node.target is torch.matmul:
                self._matmul(index, gm, node, done)
        gm.graph.lint()
        gm.recompile()

    def _is_asymmetric(self, gm: fx.GraphModule, node: fx.Node) -> bool:
        if node.op == "placeholder":
            return self.carried
        return node.target in ASYMMETRIC_FUNCTIONS or isinstance(module_of(gm, node), ASYMMETRIC)

    def _layer(self, index: int, name: str, module: nn.Module) -> LayerInfo:
        pins = self.placement.pins(
            name, first=name == self.first, second=self.quantizers == 0 and name != self.first, last=name == self.last
        )
        twin = twin_of(module)
        self.table[name] = LayerInfo(name, index, twin.kind, tuple(twin.weight_of(module).shape), *pins)
        return self.table[name]

    def _quantized(self, module: nn.Module, info: LayerInfo) -> nn.Module:
        widths = (info.pin_w,) if info.pin_w else tuple(sorted({pair.w for pair in self.pairs}))
        twin = twin_of(module)
        n, latent_step = grid.latent(twin.weight_of(module))
        on_grid = n.float() * grid.per_channel(latent_step, n)
        steps, zeros = weight_grids(on_grid, widths, self.step_size)
        return twin.of(module, MultiBitWeight(n, latent_step, widths, steps, zero_points=zeros))

    def _matmul(self, index: int, gm: fx.GraphModule, node: fx.Node, done: dict[fx.Node, str]) -> None:
        path = node.meta.get("path") or "matmul"
        number = sum(name.startswith(f"{path}.matmul") for name in self.table) + 1
        name = f"{path}.matmul{number}"
        _, pin_a = self.placement.pins(name, first=False, second=False, last=False)
        probabilities = isinstance(node.args[0], fx.Node) and node.args[0].target is F.softmax
        first = self.placement.softmax if probabilities else None
        info = self.table[name] = LayerInfo(name, index, "matmul", None, first, pin_a)
        gm.add_submodule(name, QuantMatmul())
        node.op, node.target = "call_module", name
        for position in (0, 1):
            self._input(gm, node, position, info, done, None)

    def _input(
        self,
        gm: fx.GraphModule,
        node: fx.Node,
        position: int,
        info: LayerInfo,
        done: dict[fx.Node, str],
        image: fx.Node | None,
    ) -> None:
        """A quantizer behind the tensor that `node` reads at `position`, unless the tensor has one."""
        source = node.args[position]
        assert isinstance(source, fx.Node)
        if source in done or (source is image and self.placement.edge != "8bit"):
            return
        pin = (info.pin_w if info.kind == "matmul" and position == 0 else None) or info.pin_a
        widths = (pin,) if pin else tuple(sorted({pair.a for pair in self.pairs}))
        path = f"quantizers.{info.name.replace('.', '_')}" + (f"_{'ab'[position]}" if info.kind == "matmul" else "")
        table = self.placement.gelu == "table" and source in self.asymmetric
        done[quantize_node(gm, source, path, ActivationQuantizer(widths, info.name, pin, table))] = path
        self.quantizers += 1


def quantize_node(gm: fx.GraphModule, source: fx.Node, path: str, quantizer: ActivationQuantizer) -> fx.Node:
    """Put a quantizer behind the tensor that a node makes, for all who read it; the node that calls it."""
    gm.add_submodule(path, quantizer)
    with gm.graph.inserting_after(source):
        quantized = gm.graph.call_module(path, (source,))
    quantized.meta = dict(source.meta)
    source.replace_all_uses_with(quantized, lambda user: user is not quantized and user.target != "size")
    return quantized
