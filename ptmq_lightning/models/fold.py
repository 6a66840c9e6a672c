"""Norms and scales folded into the layers beside them, by data flow (PTMQ §1.10), in place on a traced network.

- BatchNorm (eval) into the layer before it, or, where there is none, into the layers after it.
- The affine part of a LayerNorm into every layer that reads it: W' = W diag(g), b' = b + W beta.
- LayerScale (a constant per-channel factor) into the layer before it.

All products are formed in float64. What is left over is reported with its reason.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from ptmq_lightning.models.absorb import FoldReport, absorb_input, absorb_output
from ptmq_lightning.models.flow import carry, kind, per_channel, readers
from ptmq_lightning.models.nodes import constants, module_of
from ptmq_lightning.runtime.layers import QUANTIZABLE

_PRODUCTS = {operator.mul, torch.mul, "mul"}
_OTHER_NORMS = {"GroupNorm", "group_norm", "RMSNorm", "rms_norm", "InstanceNorm2d", "instance_norm"}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold(gm: fx.GraphModule) -> FoldReport:
    """Fold every norm and scale of a traced network (see `graph.trace`) that data flow allows; gm is changed."""
    report = FoldReport()
    for node in list(gm.graph.nodes):
        if isinstance(module_of(gm, node), QUANTIZABLE):
            _fold_into(gm, node, report)
    for node in list(gm.graph.nodes):
        module = module_of(gm, node)
        if isinstance(module, _BATCH_NORMS):
            _batch_norm_into_readers(gm, node, module, report)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            _layer_norm_into_readers(gm, node, module, report)
        elif node.op.startswith("call") and kind(gm, node) in _OTHER_NORMS:
            report.kept.append((str(node.meta["path"]), f"{kind(gm, node)} is not folded"))
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.recompile()
    return report


def _fold_into(gm: fx.GraphModule, node: fx.Node, report: FoldReport) -> None:
    """Batch norms and channel factors behind one layer, as long as nothing else reads in between."""
    layer = module_of(gm, node)
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    axis = len(node.meta["shape"]) - (1 if isinstance(layer, nn.Linear) else 3)
    known, current = constants(gm), node
    while len(current.users) == 1:
        user = next(iter(current.users))
        norm, factor = module_of(gm, user), _factor(user, current, axis, known)
        if isinstance(norm, _BATCH_NORMS) and norm.running_var is not None and axis == 1:
            absorb_output(layer, *_affine(norm))
        elif factor is not None:
            absorb_output(layer, factor)
        elif (moved := carry(gm, user, current, axis)) is not None:
            current, axis = user, moved
            continue
        else:
            return
        report.folded.append((f"{user.meta['path']} ({'BatchNorm' if norm else 'LayerScale'})", str(node.target)))
        _remove(user, current)


def _factor(user: fx.Node, node: fx.Node, axis: int, known: dict[fx.Node, Tensor]) -> Tensor | None:
    if user.op == "call_module" or user.target not in _PRODUCTS:
        return None
    other = next((a for a in user.args if isinstance(a, fx.Node) and a in known), None)
    return None if other is None else per_channel(known[other], node.meta["shape"], axis)


def _affine(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in eval mode, float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _batch_norm_into_readers(gm: fx.GraphModule, node: fx.Node, norm: nn.Module, report: FoldReport) -> None:
    assert isinstance(norm, _BATCH_NORMS)
    found, reason = readers(gm, node, 1)
    if norm.running_var is None:
        reason = "it has no running statistics"
    if reason:
        report.kept.append((f"{node.target} (BatchNorm)", f"no single layer before it, and it is {reason}"))
        return
    for reader in found:
        absorb_input(module_of(gm, reader), *_affine(norm))  # type: ignore[arg-type]
    report.folded.append((f"{node.target} (BatchNorm)", ", ".join(str(reader.target) for reader in found)))
    _remove(node, node.args[0])  # type: ignore[arg-type]


def _layer_norm_into_readers(gm: fx.GraphModule, node: fx.Node, norm: nn.LayerNorm, report: FoldReport) -> None:
    found, reason = readers(gm, node, len(node.meta["shape"]) - 1)
    if len(norm.normalized_shape) != 1:
        reason = f"over {len(norm.normalized_shape)} axes"
    if reason:
        report.kept.append((f"{node.target} (LayerNorm affine)", reason))
        return
    for reader in found:
        absorb_input(module_of(gm, reader), norm.weight, norm.bias)  # type: ignore[arg-type]
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)
    gm.add_submodule(str(node.target), plain.eval())
    report.folded.append((f"{node.target} (LayerNorm affine)", ", ".join(str(reader.target) for reader in found)))


def _remove(node: fx.Node, replacement: fx.Node) -> None:
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)
