"""Which activation quantizers may overwrite their input: decided once, from the data flow of the graph.

It is safe where the input comes from an operation that always makes a new, dense tensor, and where nothing but the
quantizer reads that tensor (asking for its size is no reading). A view of the tensor would be such a reader, and a
tensor of another block comes in through the block's input, which no operation of the graph made: neither passes.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ptmq_lightning.runtime.layers import WEIGHT_LAYERS, ActivationQuantizer, QuantMatmul

FRESH_MODULES = (
    *(*WEIGHT_LAYERS.values(), QuantMatmul, nn.LayerNorm, nn.BatchNorm2d, nn.GroupNorm),
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Softmax, nn.Tanh),
)
FRESH_FUNCTIONS: frozenset[Any] = frozenset(
    {
        *(operator.add, operator.mul, operator.sub, operator.truediv, torch.add, torch.mul, torch.sub, torch.div),
        *(torch.relu, torch.sigmoid, torch.tanh, torch.matmul, torch.cat),
        *(F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.softmax, F.layer_norm, F.conv2d, F.linear),
    }
)


def allow_in_place(block: nn.Module, allowed: bool) -> int:
    """Let the quantizers of a block overwrite their input where that is safe, or none; the number of those that may."""
    modules = dict(block.named_modules())
    for module in modules.values():
        if isinstance(module, ActivationQuantizer):
            module.in_place = False
    if not allowed or not isinstance(block, fx.GraphModule):
        return 0
    safe: dict[ActivationQuantizer, bool] = {}
    for node in block.graph.nodes:
        quantizer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(quantizer, ActivationQuantizer):
            safe[quantizer] = safe.get(quantizer, True) and is_safe(node, modules)
    for quantizer, allow in safe.items():
        quantizer.in_place = allow
    return sum(safe.values())


def is_safe(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the quantizer that `node` calls is the only reader of a new tensor."""
    source = node.args[0]
    return (
        isinstance(source, fx.Node)
        and _makes_new(source, modules)
        and all(user is node or (user.op == "call_method" and user.target == "size") for user in source.users)
    )


def _makes_new(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return type(module) in FRESH_MODULES and not getattr(module, "inplace", False)
    overwrites = any(value is True for value in (*node.args, *node.kwargs.values()))  # F.relu(x, inplace=True)
    return node.op == "call_function" and node.target in FRESH_FUNCTIONS and not overwrites
