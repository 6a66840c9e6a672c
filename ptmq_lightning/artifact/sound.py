"""Whether the numbers of a model can be computed with: step sizes, zero points, and every tensor of floating point."""

from __future__ import annotations

import torch

from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of, weights_of


def check_numbers(model: MultiBitModel) -> dict[str, int]:
    """How many pairs of layer and width, pairs of quantizer and width, and tensors were looked at.

    Raises ArtifactError naming the first number that nothing can be computed with.
    """
    counts = {"weights": 0, "activations": 0, "tensors": 0}
    for name, weight in weights_of(model):
        counts["weights"] += len(weight.widths)
        for bits, step in zip(weight.widths, weight.steps, strict=True):
            if not bool((step.isfinite() & (step > 0)).all()):
                raise _unsound(
                    f"layer '{_short(name)}' has a step size of {float(step.min())} at {bits} bits", "positive numbers"
                )
    for path, quantizer in quantizers_of(model):
        counts["activations"] += len(quantizer.widths)
        for bits, step, zero in zip(quantizer.widths, quantizer.steps, quantizer.zero_points, strict=True):
            top = 2 ** (bits if quantizer.tables is None else grid.TABLE_BITS) - 1
            if not bool(step.isfinite() & (step > 0)) or float(zero) not in range(top + 1):
                raise _unsound(
                    f"the quantizer '{_short(path)}' has the step size {float(step)} and the zero point {float(zero)} "
                    f"at {bits} bits",
                    f"a positive step size and a whole number from 0 to {top}",
                )
    for name, tensor in (*model.named_buffers(), *model.named_parameters()):
        if tensor.is_floating_point():
            counts["tensors"] += 1
            if not bool(torch.isfinite(tensor).all()):
                raise _unsound(f"'{name}' holds numbers that are not finite", "finite ones")
    return counts


def _short(name: str) -> str:
    """Of blocks.<index>.<path> the path, as the layer table has it."""
    return name.split(".", 2)[2]


def _unsound(found: str, expected: str) -> ArtifactError:
    return ArtifactError(f"{found}; expected {expected}. Save the model again.")
