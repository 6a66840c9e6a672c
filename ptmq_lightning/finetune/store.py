"""The tensors of a model trained as a whole, all widths in one file: what its storage is counted by.

Weights as their method stores them (8-bit codes, or 11-bit integers and steps), a scale and a bias per channel and pair
in place of each norm, activation steps. The network itself is not in the file: the run's configuration makes it again.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ptmq_lightning.finetune.layers import FoldedWeight
from ptmq_lightning.finetune.network import SharedModel
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.files import replacing_file

TENSORS = "trained.safetensors"


def save(model: SharedModel, folder: Path) -> Path:
    """Write the tensors of a committed model; the file appears whole or not at all."""
    with replacing_file(folder / TENSORS) as part:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in _own(model).items()}, part)
    return folder / TENSORS


def restore(model: SharedModel, folder: Path) -> None:
    """Put saved tensors into a committed model of the same configuration. Raises ArtifactError where they differ."""
    tensors, own = load_file(folder / TENSORS), _own(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if shapes != expected:
        differing = [name for name in {**expected, **shapes} if shapes.get(name) != expected.get(name)]
        raise ArtifactError(
            f"{folder / TENSORS} does not fit the model: {len(differing)} tensors are missing, unknown or of another "
            f"shape, first {differing[0]}; make the model with the configuration that stands beside the file"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
    for module in model.modules():
        if isinstance(module, FoldedWeight):
            module.forget()
    model.switch(model.pairs[0])  # what was derived from the old tensors is derived anew
    model.switch(None)


def _own(model: SharedModel) -> dict[str, Tensor]:
    """Every tensor but the biases that the active pair has chosen from a layer's table."""
    state = model.state_dict()
    chosen = {name.replace(".weight.biases", ".bias") for name in state if name.endswith(".weight.biases")}
    return {name: tensor for name, tensor in state.items() if name not in chosen}
