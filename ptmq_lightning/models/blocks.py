"""The network cut into blocks: one tensor in, one tensor out, every layer in exactly one block.

A cut is a place where one tensor is the only live one that depends on the image. The stretches between cuts are grouped
into blocks by the module path of their nodes: a table of name patterns says what a block is called in each family, and
where no pattern fits, every stretch that holds a layer is a block. What does not come from the image (position
embeddings, relative position bias, masks) is fetched inside the block that uses it; the batch size is read from the
block's input.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ptmq_lightning.models.nodes import is_size, module_of, part
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.layers import QUANTIZABLE

# family: pattern of a block's module path, matched from the start; the first that matches a path names its block
PATTERNS: dict[str, str] = {
    "resnet": r"layer\d+\.\d+",
    "swin, convnext, levit, pit": r"(?:layers|stages|transformers)\.\d+\.(?:downsample|blocks\.\d+)",
    "mobilenet, efficientnet": r"blocks\.\d+\.\d+",
    "vit, deit, mixer": r"blocks\.\d+(?=\.[a-z_])",
    "regnet": r"s\d+\.b\d+",
    "mobileone, repvgg, mobilevit": r"stages\.\d+\.\d+",
    "densenet": r"features\.(?:denseblock\d+|transition\d+)",
}
_PATTERN = re.compile("|".join(PATTERNS.values()))
_OPAQUE = {
    *("conv1d", "conv2d", "conv3d", "conv_transpose2d", "linear", "bilinear", "einsum", "baddbmm"),
    "scaled_dot_product_attention",
}


@dataclass(frozen=True)
class Block:
    """name: module path, "stem" or "head"; layers: paths of its convolutions and linears in order of execution."""

    name: str
    module: fx.GraphModule
    layers: tuple[str, ...]


@dataclass
class _Stretch:
    """Nodes between two cuts, and the name the table gives them."""

    nodes: list[fx.Node]
    label: str | None


def cut(gm: fx.GraphModule, example: Tensor, *, name: str = "network") -> list[Block]:
    """Cut a traced network (folded or not) into blocks whose chain is bitwise the network.

    example: images (B, C, H, W), on which the chain is compared with the network. name: of the network, for messages.
    """
    groups = _with_layers(gm, _named(gm, _stretches(gm)))
    if not any(_layer(gm, node) for group in groups for node in group.nodes):
        raise ModelError(
            f"the network '{name}' has no convolution or linear layer that tracing can see; expected at least one. "
            f"See blocks.opaque_layers for what is hidden."
        )
    source, blocks = next(n for n in gm.graph.nodes if n.op == "placeholder"), []
    for group in groups:
        module = part(gm, [source], group.nodes)
        blocks.append(
            Block(str(group.label), module, tuple(str(n.target) for n in module.graph.nodes if _layer(gm, n)))
        )
        source = group.nodes[-1]
    with torch.no_grad():
        if not torch.equal(nn.Sequential(*[block.module for block in blocks])(example), gm(example)):
            raise ModelError(
                f"the chain of {len(blocks)} blocks of '{name}' does not compute what the network computes; expected "
                f"equal outputs. Its operations have side effects that tracing does not see; choose another network."
            )
    return blocks


def opaque_layers(gm: fx.GraphModule, network: nn.Module) -> list[str]:
    """What quantization cannot reach, one line each: layers that tracing does not see, products hidden in functions."""
    called = {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    found = []
    for path, module in network.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and path not in called:
            hidden = next((target for target in called if path.startswith(f"{target}.")), None)
            found.append(f"{path}: " + (f"hidden inside {hidden}" if hidden else "not called on the image"))
    for node in gm.graph.nodes:
        layer = module_of(gm, node)
        if isinstance(layer, (nn.modules.conv._ConvNd, nn.Bilinear)) and not isinstance(layer, QUANTIZABLE):
            found.append(f"{node.target}: a {type(layer).__name__} is not quantized")
        elif node.op == "call_function" and node.target.__name__ in _OPAQUE:
            found.append(f"{node.meta['path']}: {node.target.__name__} is called as a function")
    return found


def _layer(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The convolution, transposed or not, or linear layer that a node calls."""
    return module if isinstance(module := module_of(gm, node), QUANTIZABLE) else None


def _moving(gm: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose value comes from the image's pixels (sizes do not count)."""
    moving: set[fx.Node] = set()
    for node in gm.graph.nodes:
        reads = any(source in moving for source in node.all_input_nodes)
        if node.op == "placeholder" or (reads and node.op != "output" and not is_size(node)):
            moving.add(node)
    return moving


def _stretches(gm: fx.GraphModule) -> list[_Stretch]:
    """The moving nodes after the image, split behind every node that is the only live one and has a row per image."""
    moving = _moving(gm)
    order = [node for node in gm.graph.nodes if node in moving]
    position = {node: index for index, node in enumerate(order)}
    last = {
        node: max((position.get(user, len(order)) for user in node.users if not is_size(user)), default=-1)
        for node in order
    }
    stretches: list[_Stretch] = []
    current: list[fx.Node] = []
    alive = {order[0]}
    for index, node in enumerate(order[1:], start=1):
        current.append(node)
        alive = {n for n in alive | {node} if last[n] > index}
        if alive == {node} and node.meta.get("rows") == 1:
            stretches.append(_Stretch(current, _label(current)))
            current = []
    return stretches


def _label(nodes: Sequence[fx.Node]) -> str | None:
    """Name of the block that a stretch belongs to: the first name the table gives to one of its nodes."""
    found = (_PATTERN.match(f"{node.meta.get('path', '')}.x") for node in nodes)
    return next((match.group() for match in found if match), None)


def _named(gm: fx.GraphModule, stretches: list[_Stretch]) -> list[_Stretch]:
    """Stretches joined into named blocks; without any name from the table one block per stretch with a layer."""
    labels = [index for index, stretch in enumerate(stretches) if stretch.label]
    if not labels:
        for stretch in stretches:
            stretch.label = next((str(node.target) for node in stretch.nodes if _layer(gm, node)), None)
    groups: list[_Stretch] = []
    for index, stretch in enumerate(stretches):
        label = stretch.label
        if labels and not label and index < labels[0]:
            label = "stem"
        elif labels and index > labels[-1]:
            label = "head"
        if groups and label in (None, groups[-1].label):
            groups[-1].nodes += stretch.nodes
        else:
            groups.append(_Stretch(list(stretch.nodes), label or "stem"))
    return groups


def _with_layers(gm: fx.GraphModule, groups: list[_Stretch]) -> list[_Stretch]:
    """Groups without a layer join the one before them (the first one: the one after); so does what a depthwise
    convolution alone precedes: depthwise and pointwise are one block."""
    kept: list[_Stretch] = []
    open_end = True  # whether the next group joins the last one whatever it holds
    for group in groups:
        layers = [layer for node in group.nodes if (layer := _layer(gm, node))]
        depthwise = all(isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels for layer in layers)
        if kept and (open_end or not layers):
            kept[-1].nodes += group.nodes
        else:
            kept.append(_Stretch(list(group.nodes), group.label))
        open_end = depthwise and (open_end or bool(layers))
    return kept
