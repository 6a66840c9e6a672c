"""A multi-bit model on disk: `model.safetensors` and `manifest.json`, no pickle, every tensor with its hash (PTMQ §2).

Format 3, byte by byte in docs/artifact.md. Tensors are named blocks.<index>.<path>; the integers of a weight are bit
strings (`artifact.packing`), steps, biases, norms and activation steps are as they are. The manifest holds the graphs
(`artifact.graph`), the layer table, widths, assignments and info, the dtype, shape and SHA-256 of every tensor, and a
SHA-256 of itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, fx

from ptmq_lightning.artifact.graph import describe, rebuild
from ptmq_lightning.artifact.manifest import ARTIFACT, MANIFEST, TENSORS, read_manifest
from ptmq_lightning.artifact.nested import choose
from ptmq_lightning.artifact.packing import pack_weight, unpack_weight
from ptmq_lightning.artifact.sound import check_numbers
from ptmq_lightning.artifact.tensors import label, read_tensors
from ptmq_lightning.runtime.errors import ArtifactError, ConfigError, ModelError
from ptmq_lightning.runtime.files import bring_back, replacing_folder
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel, quantizers_of, weights_of
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.weights import CommittedWeight

_NO_GRAPH = (
    *(LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError, AssertionError),
    *(SyntaxError, ConfigError, ModelError),
)


def save(model: MultiBitModel, folder: Path | str, packing: str = "latent") -> Path:
    """Write a committed or nearest-rounded model; what is written is decoded and compared before it gets its name.

    An artifact that is already there is replaced at the end, and stays if anything fails; one that a killed save left
    under a hidden name gets its own again first.

    Args:
        packing: how weights are stored, all exact. latent: 11 bits and the rounding (1 bit per plane, 5 for an offset).
            nested: codes of tied widths in one integer, 9 bits with one plane. auto: the smaller of both, per layer.
            Only a model that is latent throughout still has its float network when it is loaded.

    Raises:
        ModelError: a model that is not finished, or steps that nested cannot store.
        ArtifactError: a network or a folder that cannot be used.
    """
    folder = Path(folder)
    place = folder.resolve()
    _check_finished(model)
    bring_back(place)
    _check_place(folder)
    manifest, tensors = _encode(model, packing)
    with replacing_folder(place) as part:
        safetensors.torch.save_file(tensors, part / TENSORS)
        (part / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _check_decoded(model, manifest, load(part), packing)
    return folder


def load(folder: Path | str) -> MultiBitModel:
    """The model that was saved, on the CPU; needs neither timm nor lightning.

    It runs as the float network, or at its widest pair where it was stored without it (packing nested or auto).
    Raises ArtifactError naming the first thing that does not match.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    tensors = read_tensors(folder, manifest["tensors"])
    try:
        model = _decode(manifest, tensors)
        check_numbers(model)
        return model
    except ArtifactError as error:
        raise ARTIFACT.failed(folder, str(error)) from error
    except _NO_GRAPH as error:
        raise ArtifactError(
            f"cannot load '{folder}': {MANIFEST} describes no network ({type(error).__name__}: {error}); expected what "
            f"save() writes. Save the model again."
        ) from error


def _check_finished(model: MultiBitModel) -> None:
    if not isinstance(model.info, ModelInfo):
        raise ModelError(
            f"model.info is a {type(model.info).__name__}; expected a ModelInfo, as runtime.info has it. Set it with "
            f"dataclasses.replace(model.info, ...)."
        )
    for index, (name, block) in enumerate(zip(model.block_names, model.blocks, strict=True)):
        layers: list[tuple[str, Any, type]] = [(path, layer, CommittedWeight) for path, layer in weights_of(block)]
        layers += [(path, layer, ActivationQuantizer) for path, layer in quantizers_of(block)]
        for path, layer, wanted in layers:
            if not isinstance(layer, wanted):
                raise ModelError(
                    f"block {index} ({name}) holds a {type(layer).__name__} at '{path}'; expected a "
                    f"{wanted.__name__}. Finish or commit the block's reconstruction before saving."
                )
            if isinstance(layer, ActivationQuantizer) and not layer.calibrated:
                raise ModelError(
                    f"the activation quantizer '{path}' of block {index} ({name}) has no steps; expected a calibrated "
                    f"model. Calibrate it before saving."
                )


def _check_place(folder: Path) -> None:
    held = [folder] if folder.is_file() else sorted(folder.iterdir()) if folder.exists() else []
    others = [path.name for path in held if path.name not in (MANIFEST, TENSORS) or folder.is_file()]
    if others:
        raise ArtifactError(
            f"cannot save to '{folder}': found {others[0]!r} there; expected a new folder, an empty one or one that "
            f"holds an artifact and nothing else. Choose another folder."
        )


def _encode(model: MultiBitModel, packing: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors, on the CPU and each with memory of its own."""
    blocks: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    stored = model.handle()  # its weights are exchanged, the model's stay
    for index, (name, block) in enumerate(zip(model.block_names, stored.blocks, strict=True)):
        if not isinstance(block, fx.GraphModule):
            raise ModelError(f"block {name!r} is a {type(block).__name__}; expected a GraphModule made by blocks.cut.")
        for layer, weight in list(weights_of(block)):
            block.get_submodule(layer).weight = choose(layer, weight, packing)
        data, own = describe(block)
        own = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in own.items()}
        _convert(data, own, pack_weight)
        blocks.append({"name": name} | data)
        tensors |= {f"blocks.{index}.{key}": tensor for key, tensor in own.items()}
    manifest: dict[str, Any] = {
        "info": model.info.to_json(),
        "pairs": model.pairs,
        "assignments": {name: assignment.to_json() for name, assignment in model.assignments.items()},
        "layers": [layer.to_json() for layer in model.layers.values()],
        "blocks": blocks,
        "tensors": {key: label(tensor) for key, tensor in sorted(tensors.items())},
    }
    manifest = json.loads(json.dumps(manifest))
    return ARTIFACT.stamped(manifest), tensors


def _weights(block: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path}.weight.", m["weight"]) for path, m in block["modules"].items() if "weight" in m]


def _convert(block: dict[str, Any], tensors: dict[str, Tensor], how: Callable[..., dict[str, Tensor]]) -> None:
    """Every weight's tensors packed or unpacked, in place."""
    for start, spec in _weights(block):
        own = {key.removeprefix(start): tensors.pop(key) for key in list(tensors) if key.startswith(start)}
        tensors |= {start + key: tensor for key, tensor in how(spec, own).items()}


def _decode(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> MultiBitModel:
    blocks = []
    for index, block in enumerate(manifest["blocks"]):
        start = f"blocks.{index}."
        own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        _convert(block, own, unpack_weight)
        blocks.append(rebuild(block, own))
    table = [LayerInfo.from_json(row) for row in manifest["layers"]]
    pairs = [BitWidth.parse(pair) for pair in manifest["pairs"]]
    model = MultiBitModel(blocks, [block["name"] for block in manifest["blocks"]], {i.name: i for i in table}, pairs)
    model.assignments = {name: BitAssignment.from_json(rows) for name, rows in manifest["assignments"].items()}
    for assignment in model.assignments.values():
        model.resolve(assignment)
    model.info = ModelInfo.from_json(manifest["info"])
    if not model.has_float:
        model.switch(max(pairs))
    return model.eval()


def _check_decoded(model: MultiBitModel, manifest: dict[str, Any], loaded: MultiBitModel, packing: str) -> None:
    """Codes and steps at every width, and the whole encoding, are the model's."""
    written = dict(weights_of(loaded))  # paired by name: a graph read back may hold its modules in another order
    for name, weight in weights_of(model):
        other, layer = written[name], name.split(".", 2)[2]  # blocks.<index>.<layer>
        same = torch.equal(weight.steps.cpu(), other.steps)
        if not same or any(not torch.equal(weight.code(b).cpu(), other.code(b)) for b in weight.widths):
            raise ArtifactError(
                f"the written artifact gives other codes or steps for layer '{layer}' than the model; expected "
                f"equal ones at {weight.widths} bits. Nothing was saved; its latents must have 11 bits and its "
                f"rounding must be 0 or 1 (tau 0 to 31)."
            )
    if _encode(loaded, packing)[0] != manifest:
        raise ArtifactError(
            "the written artifact decodes to another network than the model; expected the same. Nothing was saved."
        )
