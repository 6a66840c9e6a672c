"""A multi-bit model's blocks as one list of operations, and what each of them computes on real images.

An exporter reads a network in this form: names are unique over all blocks, arguments point at operations, and every
operation knows who reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from ptmq_lightning.artifact.tables import NAME_OF
from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.model import MultiBitModel

IMAGE, CONSTANT = "image", "constant"
CONVOLUTIONS = ("QuantConv2d", "QuantConvTranspose2d")
LAYERS = (*CONVOLUTIONS, "QuantLinear", "QuantMatmul")
WIDTH_DEPENDENT = ("ActivationQuantizer", *LAYERS)


@dataclass(eq=False, repr=False)
class Op:
    """One operation. key: a name of `artifact.tables` without its room ("add", "QuantConv2d"), "image" or "constant";
    path: the module called or the tensor read; where: the module in which it happens, "" in a loaded artifact; shape:
    of its tensor at a batch of two, else None."""

    name: str
    key: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    where: str = ""
    module: nn.Module | None = None
    value: Tensor | None = None
    shape: tuple[int, ...] | None = None
    users: list[Op] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Op({self.name}, {self.key})"  # arguments and users would tell the whole network

    @property
    def source(self) -> Op | None:
        """The operation that makes the first argument."""
        return self.args[0] if self.args and isinstance(self.args[0], Op) else None


@dataclass
class Chain:
    """Float blocks, as a model holds its own."""

    blocks: list[fx.GraphModule]

    @property
    def block_names(self) -> list[str]:
        return [str(index) for index in range(len(self.blocks))]


def operations(model: MultiBitModel | Chain, images: Tensor) -> list[Op]:
    """All operations in the order of execution; the last one makes the logits. images (N >= 2, C, H, W)."""
    ops: list[Op] = []
    before: Op | None = None
    for index, block in enumerate(model.blocks):
        if not isinstance(block, fx.GraphModule):
            raise ExportError(
                f"block {model.block_names[index]!r} is a {type(block).__name__}; expected a GraphModule, as an "
                f"artifact holds. Save and load the model."
            )
        before = _block(index, block, before, ops)
    values: dict[str, Tensor] = {}
    record(model, images[:2], values.__setitem__)
    for op in ops:
        value, inputs = values.get(op.name), _inputs(op)
        op.shape = None if value is None else tuple(value.shape)
        folds = inputs and all(i.key == CONSTANT for i in inputs) and op.key not in WIDTH_DEPENDENT
        if value is not None and folds:  # a Swin's table of biases, read
            op.key, op.args, op.kwargs, op.value, inputs = CONSTANT, (), {}, value.detach(), []
        for argument in inputs:
            argument.users.append(op)
    used = {argument for op in ops for argument in _inputs(op)}
    return [op for op in ops if op.key != CONSTANT or op in used]


def _block(index: int, block: fx.GraphModule, before: Op | None, ops: list[Op]) -> Op:
    """Append the operations of a block; returns the one that makes its output."""
    known: dict[fx.Node, Op] = {}
    look_up: Any = known.get
    for node in block.graph.nodes:
        if node.op == "output":
            result: Op = known[node.args[0]]
            return result
        if node.op == "placeholder" and before is not None:
            known[node] = before
            continue
        if node.op == "get_attr" and isinstance(_attribute(block, str(node.target)), nn.Module):
            continue  # the quantizer in whose step a layer counts its bias: no tensor
        op = known[node] = Op(_name(index, node), _key(block, node))
        op.where = str(node.meta.get("path", ""))
        op.args, op.kwargs = (map_arg(a, look_up) for a in (node.args, node.kwargs))
        if node.op == "call_module":
            op.path, op.module = str(node.target), block.get_submodule(str(node.target))
        elif node.op == "get_attr":
            op.path, op.value = str(node.target), _attribute(block, str(node.target)).detach()
        ops.append(op)
    raise AssertionError("a graph without an output")


def _key(block: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "placeholder":
        return IMAGE
    if node.op == "get_attr":
        return CONSTANT
    if node.op == "call_module":
        return type(block.get_submodule(str(node.target))).__name__
    return NAME_OF.get(node.target, str(node.target)).rpartition(".")[2]  # type: ignore[arg-type]


def _name(index: int, node: fx.Node) -> str:
    return f"{index}.{node.name}"


def _attribute(block: fx.GraphModule, path: str) -> Any:
    value: Any = block
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _inputs(op: Op) -> list[Op]:
    found: dict[Op, None] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Op):
            found[value] = None
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item)

    visit((*op.args, *op.kwargs.values()))
    return list(found)


@torch.no_grad()
def record(model: MultiBitModel | Chain, images: Tensor, keep: Callable[[str, Tensor], None]) -> Tensor:
    """Run the model as it is switched, telling `keep` every operation's name and tensor; returns the logits."""
    x = images
    for index, block in enumerate(model.blocks):
        x = _Recorder(block, index, keep).run(x)  # type: ignore[arg-type]
    return x


class _Recorder(fx.Interpreter):
    def __init__(self, block: fx.GraphModule, index: int, keep: Callable[[str, Tensor], None]) -> None:
        super().__init__(block)
        self.index, self.keep = index, keep

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output" and isinstance(value, Tensor):
            self.keep(_name(self.index, n), value)
        return value
