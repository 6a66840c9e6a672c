"""From learning to integers and back: the layers of a block change hands (PTMQ §1.5, end; §8: W is never
overwritten)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ptmq_lightning.quant.layers import MaskBank, TrainableActivation
from ptmq_lightning.quant.roundings import ROUNDINGS, LearnedWeight
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.files import replacing_file
from ptmq_lightning.runtime.model import device_of, quantizers_of, weights_of
from ptmq_lightning.runtime.weights import MultiBitWeight

_LEARNED = ("steps", "ratios", "rounding")  # of a weight; its integers stay


def make_trainable(block: nn.Module, recipe: Recipe, masks: MaskBank | None) -> None:
    """Put a trainable weight and activation quantizer in the place of every one of the block's.

    Args:
        recipe: which rounding and which step sizes are learned; what is not learned stays, and gradients pass it.
        masks: of the inner drop (PTMQ §1.9); None: nothing is dropped.
    """
    kind = ROUNDINGS[recipe.rounding.name]
    for name, weight in list(weights_of(block)) if kind.learns else []:
        layer: Any = block.get_submodule(name)
        layer.weight = kind(weight, recipe.rounding, learn_step_sizes=recipe.learn_step_sizes)
        layer.biases = None  # a correction was of another rounding
    for path, quantizer in list(quantizers_of(block)):
        block.set_submodule(path, TrainableActivation(quantizer, masks).requires_grad_(recipe.learn_inputs))


def commit(block: nn.Module) -> None:
    """Freeze what was learned: R = [V >= 0], step sizes as they stand; the trainable layers go."""
    for name, weight in list(weights_of(block)):
        if isinstance(weight, LearnedWeight):
            block.get_submodule(name).weight = weight.committed()
    for path, quantizer in list(quantizers_of(block)):
        if isinstance(quantizer, TrainableActivation):
            block.set_submodule(path, quantizer.committed())


def save_block(block: nn.Module, file: Path) -> None:
    """A committed block's tensors into a file that appears whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    kinds: dict[str, str] = {}
    for name, weight in weights_of(block):
        tensors |= {f"{name}.{part}": getattr(weight, part) for part in _LEARNED}
        layer: Any = block.get_submodule(name)
        if layer.biases is not None:
            tensors[f"{name}.biases"] = layer.biases
        kinds[name] = weight.kind + "".join(f" {bits}:{row}" for bits, row in weight.plane_of.items())
    for path, quantizer in quantizers_of(block):
        tensors |= {f"{path}.steps": quantizer.steps, f"{path}.zero_points": quantizer.zero_points}
    with replacing_file(file) as part:
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, part, metadata=kinds)


def load_block(block: nn.Module, file: Path) -> None:
    """Put a saved block's tensors into the same block of a freshly calibrated model."""
    device = device_of(block)
    with safe_open(file, framework="pt") as saved:
        names = set(saved.keys())
        wanted = {f"{n}.{part}" for n, _ in weights_of(block) for part in _LEARNED}
        wanted |= {f"{n}.biases" for n, _ in weights_of(block)} & names
        wanted |= {f"{p}.{part}" for p, _ in quantizers_of(block) for part in ("steps", "zero_points")}
        if names != wanted:
            odd = sorted(names ^ wanted)
            raise ArtifactError(
                f"{file.name} holds {len(names)} tensors where the block has {len(wanted)}; the first that differs is "
                f"{odd[0]!r}. Expected the block of the same run: start again without resume."
            )
        tensors = {key: saved.get_tensor(key).to(device) for key in names}
        kinds = saved.metadata() or {}
    for name, weight in weights_of(block):
        assert isinstance(weight, MultiBitWeight)
        kind, *planes = kinds[name].split()
        weight.steps, weight.ratios = tensors[f"{name}.steps"], tensors[f"{name}.ratios"]
        layer: Any = block.get_submodule(name)
        layer.biases = tensors.get(f"{name}.biases")
        plane_of = {int(bits): int(row) for bits, row in (plane.split(":") for plane in planes)}
        weight.set_rounding(kind, tensors[f"{name}.rounding"], plane_of)
    for path, quantizer in quantizers_of(block):
        quantizer.steps, quantizer.zero_points = tensors[f"{path}.steps"], tensors[f"{path}.zero_points"]
