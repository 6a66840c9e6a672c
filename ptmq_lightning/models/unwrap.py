"""Networks as people have them: compiled, parallel, pruned, parametrized, in half precision; made plain where exact."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from ptmq_lightning.runtime.errors import ModelError

_HALVES = (torch.float16, torch.bfloat16)


def plain(network: nn.Module) -> nn.Module:
    """The network itself, in fp32: out of torch.compile and (Distributed)DataParallel, masks and parametrizations
    multiplied out, halves widened (every weight keeps its value). ``network`` stays as it is, and is returned itself
    where nothing is to be done.

    Raises ModelError for a scripted module, weights in double precision, and lazy ones that were never run.
    """
    while inner := _wrapped(network):
        network = inner
    if isinstance(network, torch.jit.ScriptModule):
        raise ModelError(
            f"found a scripted module ({type(network).__name__}), whose operations cannot be followed; expected the "
            f"nn.Module it was made of. Give that one, with the same weights."
        )
    _require_usable(network)
    pruned = [module for module in network.modules() if _masks(module)]
    shaped = [module for module in network.modules() if parametrize.is_parametrized(module)]
    halves = any(p.dtype in _HALVES for p in (*network.parameters(), *network.buffers()))
    if not (pruned or shaped or halves):
        return network
    for module in pruned:  # what the mask leaves is no leaf of autograd, and could not be copied
        for mask in _masks(module):
            setattr(module, mask._tensor_name, mask.apply_mask(module).detach())
    network = copy.deepcopy(network)
    for module in network.modules():
        for mask in _masks(module):
            prune.remove(module, mask._tensor_name)
        if parametrize.is_parametrized(module):
            _multiply_out(module)
    return network.float().eval()


def _wrapped(network: nn.Module) -> nn.Module | None:
    """What a wrapper of torch holds."""
    if isinstance(network, torch._dynamo.OptimizedModule):
        return network._orig_mod
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return network.module
    return None


def _multiply_out(module: nn.Module) -> None:
    """Parametrized tensors as plain parameters. torch's own removal also strips the class, which a copy shares with the
    network that it was made of."""
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _masks(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, prune.BasePruningMethod)]


def _require_usable(network: nn.Module) -> None:
    for name, value in (*network.named_parameters(), *network.named_buffers()):
        if isinstance(value, (nn.UninitializedParameter, nn.UninitializedBuffer)):
            raise ModelError(
                f"the parameter '{name}' of a lazy layer has no values yet; expected a network that was run once. Call "
                f"network(images[:1]) before."
            )
        if value.dtype == torch.float64:
            raise ModelError(
                f"the parameter '{name}' is float64; expected float32, which rounds it. Call network.float() where "
                f"that is all right."
            )


def only_tensor(output: Any) -> Tensor:
    """The one tensor of a network's output, out of a tuple, list or dict too. Raises ModelError for several."""
    found = _tensors(output, "")
    if len(found) == 1:
        return next(iter(found.values()))
    held = ", ".join(f"{place or 'output'} {tuple(value.shape)}" for place, value in found.items()) or "none"
    raise ModelError(
        f"the network's output ({type(output).__name__}) holds {len(found)} tensors ({held}); expected one, logits of "
        f"shape (B, classes). Wrap the network in a module whose forward returns that one."
    )


def _tensors(output: Any, place: str) -> dict[str, Any]:
    """Tensors (or nodes of a graph) by their place in nested tuples, lists and dicts."""
    if isinstance(output, Mapping):
        entries = [(f"{place}[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, (tuple, list)):
        entries = [(f"{place}[{index}]", value) for index, value in enumerate(output)]
    else:
        return {place: output} if hasattr(output, "shape") else {}
    return {where: tensor for key, value in entries for where, tensor in _tensors(value, key).items()}
