"""Where a width loses its accuracy: layers, the values in the worst of them, and pictures that change their class.

Shown by the page of a run; nothing of it decides anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptmq_lightning.evaluation.cost import layer_modules
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.hooks import watched_calls
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough, quantizers_of, weights_of
from ptmq_lightning.runtime.spec import BitWidth

KEPT = 20_000  # values of a layer's output that are compared: evenly spread ones
BINS = 60
WORST = 3  # layers whose values are shown


@torch.inference_mode()
def layer_errors(model: MultiBitModel, images: Tensor, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """How far each layer's output is from the float network's, with all layers before it quantized too.

    Args:
        images: (B, C, H, W), a few.
        names: what ``model.resolve`` knows.

    Returns:
        name -> layer -> |y - y_float|² / |y_float|².
    """
    reference = _outputs(model, images, None)
    errors: dict[str, dict[str, float]] = {}
    for name in names:
        made = _outputs(model, images, name)
        errors[name] = {
            layer: float((made[layer] - y).square().sum() / y.square().sum().clamp(min=1e-12))
            for layer, y in reference.items()
        }
    return errors


def _outputs(model: MultiBitModel, images: Tensor, name: str | None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(layer: str, _: tuple[Tensor, ...], output: Tensor) -> None:
        flat = output.flatten()
        found[layer] = flat[:: max(1, len(flat) // KEPT)].float().clone()

    with watched_calls(layer_modules(model), keep), at_bits(model, name):
        model(images)
    return found


@torch.inference_mode()
def histograms(model: MultiBitModel, images: Tensor, layers: Sequence[str], pair: BitWidth) -> list[dict[str, Any]]:
    """The values of some layers' weights and inputs in float, and the step sizes of a pair.

    Returns:
        for each layer {"layer", "weight": {"edges", "counts", "bits", "step_size", "limits"} or None, "input": the same
        or None}; the levels are the whole numbers between the limits times the step size, which of a weight is the
        median over its output channels.
    """
    inputs = _inputs(model, images, layers)
    weights = {name: weight for block in model.blocks for name, weight in weights_of(block)}
    found = []
    for name in layers:
        width = model.layers[name].width(pair)
        weight, (values, quantizer) = weights.get(name), inputs.get(name, (None, None))
        shown: dict[str, Any] = {"layer": name, "weight": None, "input": None}
        if weight is not None and weight.has_float:
            step = weight.steps[weight.widths.index(width.w)].median()
            shown["weight"] = {**_counts(weight.at(None)), **_levels(width.w, float(step), grid.limits(width.w))}
        if values is not None and quantizer is not None:
            bits = quantizer.pin or width.a
            row = quantizer.widths.index(bits)
            step, zero = float(quantizer.steps[row]), round(float(quantizer.zero_points[row]))
            shown["input"] = {**_counts(values), **_levels(bits, step, (-zero, 2**bits - 1 - zero))}
        found.append(shown)
    return found


def _inputs(model: MultiBitModel, images: Tensor, layers: Sequence[str]) -> dict[str, tuple[Tensor, Any]]:
    """What the first quantizer of each layer is given in float, with that quantizer."""
    owned: dict[str, Any] = {}
    for block in model.blocks:
        for _, quantizer in quantizers_of(block):
            if quantizer.owner in layers:
                owned.setdefault(quantizer.owner, quantizer)
    seen: dict[str, Tensor] = {}

    def keep(layer: str, given: tuple[Tensor, ...], _: Tensor) -> None:
        flat = given[0].flatten()
        seen[layer] = flat[:: max(1, len(flat) // KEPT)].float().clone()

    with watched_calls(owned, keep), passthrough(model):
        model(images)
    return {layer: (values, owned[layer]) for layer, values in seen.items()}


def _levels(bits: int, step_size: float, limits: tuple[int, int]) -> dict[str, Any]:
    return {"bits": bits, "step_size": step_size, "limits": list(limits)}


def _counts(values: Tensor) -> dict[str, Any]:
    flat = values.detach().flatten().float().cpu()
    counts, edges = torch.histogram(flat, bins=BINS)
    return {"edges": [round(float(e), 6) for e in edges], "counts": [int(c) for c in counts]}


@torch.inference_mode()
def changed(
    model: MultiBitModel,
    images: Tensor,
    labels: Sequence[int],
    names: Sequence[str],
    most: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[int, int, dict[str, int]]]:
    """Images whose class is not the same at all widths: (index, label, "float" and name -> class), those that change at
    the most widths first.

    Args:
        images: (B, C, H, W).
        names: what ``model.resolve`` knows.
        progress: called with (networks run, of how many).
    """
    classes: dict[str, list[int]] = {}
    for number, name in enumerate((None, *names), 1):
        with at_bits(model, name):
            classes[name or "float"] = model(images).argmax(1).tolist()
        if progress is not None:
            progress(number, len(names) + 1)
    lost = {i: sum(of[i] != classes["float"][i] for of in classes.values()) for i in range(len(images))}
    for index in sorted((i for i, count in lost.items() if count), key=lambda i: (-lost[i], i))[:most]:
        yield index, labels[index], {name: of[index] for name, of in classes.items()}


def worst(errors: Mapping[str, float], most: int = WORST) -> list[str]:
    """The layers with the largest errors, the worst first."""
    return sorted(errors, key=lambda layer: -errors[layer])[:most]
