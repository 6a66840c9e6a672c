"""Everything that can be known about an artifact without the network it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of, weights_of


def verify(folder: Path | str) -> Iterator[str]:
    """A line for each check that an artifact passes: files and hashes, codes and steps, activations, other tensors.

    Raises ArtifactError naming the first thing that is wrong.
    """
    model = load(folder)
    yield f"both files are whole: every hash is right, and the network of {len(model.layers)} layers can be built"
    checks: tuple[Callable[[MultiBitModel, str], str], ...] = (_weights, _activations, _others)
    for check in checks:
        yield check(model, f"'{folder}' is damaged or was made wrong")


def _weights(model: MultiBitModel, wrong: str) -> str:
    count = 0
    for block in model.blocks:
        for name, weight in weights_of(block):
            for bits, step in zip(weight.widths, weight.steps, strict=True):
                low, high = grid.limits(bits)
                code = weight.code(bits)
                if code.min() < low or code.max() > high:
                    raise ArtifactError(
                        f"{wrong}: layer '{name}' has codes from {int(code.min())} to {int(code.max())} at {bits} "
                        f"bits; expected {low} to {high}. Save the model again."
                    )
                if not bool((step.isfinite() & (step > 0)).all()):
                    raise ArtifactError(
                        f"{wrong}: layer '{name}' has a step of {float(step.min())} at {bits} bits; expected positive "
                        f"numbers. Save the model again."
                    )
                count += 1
    return f"codes are in range and steps positive in all {count} pairs of layer and width"


def _activations(model: MultiBitModel, wrong: str) -> str:
    count = 0
    for block in model.blocks:
        for path, quantizer in quantizers_of(block):
            for bits, step, zero in zip(quantizer.widths, quantizer.steps, quantizer.zero_points, strict=True):
                top = 2 ** (bits if quantizer.tables is None else grid.TABLE_BITS) - 1
                if not bool(step.isfinite() & (step > 0)) or float(zero) not in range(top + 1):
                    raise ArtifactError(
                        f"{wrong}: the quantizer '{path}' has step {float(step)} and zero point {float(zero)} at "
                        f"{bits} bits; expected a positive step and a whole number from 0 to {top}. Save the "
                        f"model again."
                    )
                count += 1
    return f"steps and zero points are in range in all {count} pairs of activation quantizer and width"


def _others(model: MultiBitModel, wrong: str) -> str:
    count = 0
    for name, tensor in (*model.named_buffers(), *model.named_parameters()):
        if tensor.is_floating_point():
            if not bool(torch.isfinite(tensor).all()):
                raise ArtifactError(f"{wrong}: '{name}' holds numbers that are not finite. Save the model again.")
            count += 1
    return f"all {count} tensors of floating point are finite"
