"""Everything that can be known about an artifact without the network it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.artifact.sound import check_numbers
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.model import MultiBitModel, weights_of


def verify(folder: Path | str) -> Iterator[str]:
    """A line for each check that an artifact passes: files and hashes, numbers, codes.

    Raises ArtifactError naming the first thing that is wrong.
    """
    model = load(folder)
    yield f"both files are whole: every hash is right, and the network of {len(model.layers)} layers can be built"
    counts = check_numbers(model)  # as load() has done
    yield f"step sizes and zero points are in range in all {counts['activations']} pairs of quantizer and width"
    yield f"all {counts['tensors']} tensors of floating point are finite"
    yield f"codes are in range and step sizes positive in all {_check_codes(model, folder)} pairs of layer and width"


def _check_codes(model: MultiBitModel, folder: Path | str) -> int:
    count = 0
    for name, weight in weights_of(model):
        for bits in weight.widths:
            low, high = grid.limits(bits)
            code = weight.code(bits)
            if code.min() < low or code.max() > high:
                raise ArtifactError(
                    f"'{folder}' is damaged or was made wrong: layer '{name}' has codes from {int(code.min())} to "
                    f"{int(code.max())} at {bits} bits; expected {low} to {high}. Save the model again."
                )
            count += 1
    return count
