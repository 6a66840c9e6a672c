"""Reading a traced graph: the module a node calls, its arguments by name, the values that no image reaches."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate


def constants(gm: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Value of every tensor node that no input reaches (parameters and what is computed from them)."""
    values: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            values[node] = attribute(gm, node.target)
        elif node.op.startswith("call") and node.all_input_nodes and all(n in values for n in node.all_input_nodes):
            args = map_aggregate(node.args, lambda a: values[a] if isinstance(a, fx.Node) else a)
            kwargs = map_aggregate(node.kwargs, lambda a: values[a] if isinstance(a, fx.Node) else a)
            with torch.no_grad():
                values[node] = execute(gm, node.op, node.target, args, kwargs)
    return {node: value for node, value in values.items() if isinstance(value, Tensor)}


def attribute(root: nn.Module, path: str) -> Any:
    """root.a.b.c for the path "a.b.c"."""
    return functools.reduce(getattr, path.split("."), root)


def module_of(gm: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a call_module node calls, None for any other node."""
    return gm.get_submodule(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None


def bind(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of a call by name; names: the positional ones in order."""
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def execute(root: nn.Module, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
    """What a node of this kind does, on values."""
    if kind == "get_attr":
        return attribute(root, target)
    if kind == "call_module":
        return root.get_submodule(target).forward(*args, **kwargs)
    if kind == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def is_size(node: fx.Node) -> bool:
    """Whether a node asks for a tensor's size: the one thing of the image that is no pixel."""
    return node.op == "call_method" and node.target == "size"


def part(gm: fx.GraphModule, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> fx.GraphModule:
    """A part of a graph as a GraphModule of the same modules.

    Args:
        inputs: the tensors that become its inputs, (B, ...); the batch size is read from the first.
        nodes: to be computed; the last one is the output. What they need besides is copied too: position embeddings
            and all else that no pixel reaches are fetched here.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for number, node in enumerate(inputs):
        copies[node] = graph.placeholder("x" if len(inputs) == 1 else f"x{number}")
        copies[node].meta = dict(node.meta)
    first = copies[inputs[0]]

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            if is_size(node):
                copies[node] = graph.call_method("size", (first, 0))
            else:
                for needed in node.all_input_nodes:
                    copied(needed)
                copies[node] = graph.node_copy(node, copies.__getitem__)
        return copies[node]

    for node in nodes:
        copied(node)
    graph.output(copies[nodes[-1]])
    graph.lint()
    return fx.GraphModule(gm, graph).eval()
