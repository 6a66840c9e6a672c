"""What an integer runtime rounds beyond the quantizers of a model, put into the simulation before anything is learned
(placement.deploy): what is trained is then what ships.

An ONNX export makes 8 bits of its own of the image, and of a convolution's output that no quantizer reads, such as the
one before a shortcut is added. Where it would, an ordinary quantizer is placed here, which is calibrated, learned and
stored like every other one; the export finds it there and uses it. The export also counts a bias in steps of the
integer products: each layer with a bias is told the quantizer of its input, whose step that takes (runtime.layers).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ptmq_lightning.export.flow import operations
from ptmq_lightning.export.plan import plan
from ptmq_lightning.models.nodes import module_of
from ptmq_lightning.quant.insert import quantize_node
from ptmq_lightning.runtime.layers import ActivationQuantizer, WeightLayer
from ptmq_lightning.runtime.model import MultiBitModel, device_of

BITS = 8  # of what an export makes up


def add_roundings(model: MultiBitModel, image_size: Sequence[int]) -> None:
    """Give a model that awaits calibration the roundings of an ONNX export; image_size (C, H, W)."""
    ops = operations(model, torch.zeros(2, *image_size, device=device_of(model)))
    first = next(iter(model.layers))
    for name, op in plan(ops, image=True).watched.items():
        of_image = op is ops[0]
        layer = first if of_image else name.removesuffix(".output")
        path = f"quantizers.{layer.replace('.', '_')}" + ("" if of_image else "_out")
        index, _, node = op.name.partition(".")
        block: Any = model.blocks[int(index)]
        source = next(n for n in block.graph.nodes if n.name == node)
        quantize_node(block, source, path, ActivationQuantizer((BITS,), layer, BITS))
    for block in model.blocks:
        _count_biases(block)


def _count_biases(block: fx.GraphModule) -> None:
    """Tell each layer of a block that reads integers and has a bias the quantizer of its input."""
    for node in list(block.graph.nodes):
        layer = module_of(block, node)
        if isinstance(layer, WeightLayer) and layer.bias is not None:
            source = node.all_input_nodes[0]
            if isinstance(module_of(block, source), ActivationQuantizer):
                with block.graph.inserting_before(node):
                    node.kwargs = {"quantizer": block.graph.get_attr(str(source.target))}
    block.graph.lint()
    block.recompile()
