"""A multi-bit model on disk: `model.safetensors` and `manifest.json`, no pickle, every tensor with its hash (PTMQ §2).

Format 1. Tensors are named blocks.<index>.<path>: latent int16 (O, ...), latent_step (O,), steps and ratios
(K, O), rounding: "planes" as bits, most significant first, over all planes in a row (`numpy.packbits`), "offset" as
uint8 tau in 31sts, "latent" as int16, "nearest" not at all; biases, norms and activation steps as they are. The
manifest holds the graphs (`runtime.graph`), the layer table, widths, assignments and info, the dtype, shape and SHA-256
of every tensor, and a SHA-256 of itself.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, fx

from ptmq_lightning.runtime.errors import ArtifactError, ModelError
from ptmq_lightning.runtime.graph import describe, rebuild
from ptmq_lightning.runtime.layers import ActivationQuantizer, MultiBitWeight
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel, quantizers_of, weights_of
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth

VERSION = 1
MANIFEST, TENSORS = "manifest.json", "model.safetensors"
_NO_GRAPH = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError)
_NO_TENSORS = (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError)
_AGAIN = "Copy the artifact again from where it was saved."


def save(model: MultiBitModel, folder: Path | str) -> Path:
    """Write a committed or nearest-rounded model; what is written is decoded and compared before it gets its name.

    An artifact that is already there is replaced at the end, and stays if anything fails. Raises ModelError for a model
    that is not finished, ArtifactError for a network or a folder that cannot be used.
    """
    folder = Path(folder)
    place = folder.resolve()
    _check_finished(model)
    _check_place(folder)
    manifest, tensors = _encode(model)
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    try:
        safetensors.torch.save_file(tensors, part / TENSORS)
        (part / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _check_decoded(model, manifest, load(part))
        _move(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def load(folder: Path | str) -> MultiBitModel:
    """The model that was saved, on the CPU, running as the float network; needs neither timm nor lightning.

    Raises ArtifactError naming the first thing that does not match.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    try:
        return _decode(manifest, _read_tensors(folder, manifest["tensors"]))
    except _NO_GRAPH as error:
        raise ArtifactError(
            f"cannot load '{folder}': {MANIFEST} describes no network ({type(error).__name__}: {error}); expected what "
            f"save() writes. Save the model again."
        ) from error


def _check_finished(model: MultiBitModel) -> None:
    for index, (name, block) in enumerate(zip(model.block_names, model.blocks, strict=True)):
        layers: list[tuple[str, Any, type]] = [(path, layer, MultiBitWeight) for path, layer in weights_of(block)]
        layers += [(path, layer, ActivationQuantizer) for path, layer in quantizers_of(block)]
        for path, layer, wanted in layers:
            if not isinstance(layer, wanted):
                raise ModelError(
                    f"block {index} ({name}) holds a {type(layer).__name__} at '{path}'; expected a committed "
                    f"{wanted.__name__}. Finish or commit the block's reconstruction before saving."
                )
            if isinstance(layer, ActivationQuantizer) and not layer.calibrated:
                raise ModelError(
                    f"the activation quantiser '{path}' of block {index} ({name}) has no steps; expected a calibrated "
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


def _encode(model: MultiBitModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest and the tensors, on the CPU and each with memory of its own."""
    blocks: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for index, (name, block) in enumerate(zip(model.block_names, model.blocks, strict=True)):
        if not isinstance(block, fx.GraphModule):
            raise ModelError(f"block {name!r} is a {type(block).__name__}; expected a GraphModule made by blocks.cut.")
        data, own = describe(block)
        own = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in own.items()}
        _pack(data, own)
        blocks.append({"name": name} | data)
        tensors |= {f"blocks.{index}.{key}": tensor for key, tensor in own.items()}
    manifest: dict[str, Any] = {
        "format": "ptmq artifact",
        "version": VERSION,
        "info": model.info,
        "pairs": model.pairs,
        "assignments": {name: assignment.to_json() for name, assignment in model.assignments.items()},
        "layers": [asdict(layer) for layer in model.layers.values()],
        "blocks": blocks,
        "tensors": {key: _label(tensor) for key, tensor in sorted(tensors.items())},
    }
    try:
        manifest = json.loads(json.dumps(manifest))
    except (TypeError, ValueError) as error:
        raise ModelError(f"model.info holds what JSON cannot ({error}); expected plain values. Remove it.") from error
    return manifest | {"sha256": _digest(manifest)}, tensors


def _digest(manifest: dict[str, Any]) -> str:
    """SHA-256 of the manifest without its own."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


def _label(tensor: Tensor) -> dict[str, Any]:
    """dtype, shape and SHA-256 of the bytes of a contiguous tensor."""
    raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": dtype, "shape": list(tensor.shape), "sha256": hashlib.sha256(raw).hexdigest()}


def _weights(block: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path}.weight", m["weight"]) for path, m in block["modules"].items() if "weight" in m]


def _pack(block: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Rounding as it is stored, in place; `planes` (P) tells how many rows were packed."""
    for path, spec in _weights(block):
        rounding = tensors.pop(f"{path}.rounding")
        spec["planes"] = len(rounding)
        if spec["kind"] == "planes":
            rounding = torch.from_numpy(np.packbits(rounding.numpy()))  # (ceil(P * O * ... / 8),)
        if spec["planes"]:
            tensors[f"{path}.rounding"] = rounding


def _unpack(block: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for path, spec in _weights(block):
        if spec["kind"] == "planes":
            shape = (spec["planes"], *tensors[f"{path}.latent"].shape)
            bits = np.unpackbits(tensors[f"{path}.rounding"].numpy(), count=torch.Size(shape).numel())
            tensors[f"{path}.rounding"] = torch.from_numpy(bits).reshape(shape)  # (P, O, ...)


def _read_manifest(folder: Path) -> dict[str, Any]:
    for name in (MANIFEST, TENSORS):
        if not (folder / name).is_file():
            raise ArtifactError(f"cannot load '{folder}': found no {name}; expected {MANIFEST} and {TENSORS}. {_AGAIN}")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"cannot load '{folder}': {MANIFEST} is no JSON ({error}). {_AGAIN}") from error
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if found != ("ptmq artifact", VERSION):
        raise ArtifactError(
            f"cannot load '{folder}': {MANIFEST} has format {found[0]!r} version {found[1]!r}; expected 'ptmq "
            f"artifact' version {VERSION}. Load it with the release of ptmq-lightning that wrote it."
        )
    if manifest.get("sha256") != _digest(manifest):
        raise ArtifactError(
            f"cannot load '{folder}': {MANIFEST} was altered, its SHA-256 is {_digest(manifest)[:12]}...; expected "
            f"{str(manifest.get('sha256'))[:12]}.... {_AGAIN}"
        )
    return dict(manifest)


def _read_tensors(folder: Path, labels: dict[str, Any]) -> dict[str, Tensor]:
    """All tensors, read once into memory, each compared with its label."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load((folder / TENSORS).read_bytes())
    except _NO_TENSORS as error:
        raise ArtifactError(
            f"cannot load '{folder}': {TENSORS} is truncated or no safetensors file ({error}). {_AGAIN}"
        ) from error
    odd = sorted(set(tensors) ^ set(labels))
    if odd:
        found = f"{TENSORS} holds {odd[0]!r}" if odd[0] in tensors else f"{TENSORS} does not hold {odd[0]!r}"
        raise ArtifactError(
            f"cannot load '{folder}': {found}; expected the {len(labels)} tensors of {MANIFEST}. {_AGAIN}"
        )
    for name, wanted in labels.items():
        label = _label(tensors[name])
        for key, value in wanted.items():
            if label.get(key) != value:
                raise ArtifactError(
                    f"cannot load '{folder}': the {key} of tensor '{name}' is {label.get(key)}; expected "
                    f"{value}. {_AGAIN}"
                )
    return tensors


def _decode(manifest: dict[str, Any], tensors: dict[str, Tensor]) -> MultiBitModel:
    blocks = []
    for index, block in enumerate(manifest["blocks"]):
        start = f"blocks.{index}."
        own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        _unpack(block, own)
        blocks.append(rebuild(block, own))
    rows = [dict(row) for row in manifest["layers"]]
    shapes = [tuple(row.pop("weight_shape") or ()) or None for row in rows]
    table = [LayerInfo(**row, weight_shape=shape) for row, shape in zip(rows, shapes, strict=True)]
    pairs = [BitWidth.parse(pair) for pair in manifest["pairs"]]
    model = MultiBitModel(blocks, [block["name"] for block in manifest["blocks"]], {i.name: i for i in table}, pairs)
    model.assignments = {name: BitAssignment.from_json(rows) for name, rows in manifest["assignments"].items()}
    model.info = manifest["info"]
    return model.eval()


def _check_decoded(model: MultiBitModel, manifest: dict[str, Any], loaded: MultiBitModel) -> None:
    """Codes and steps at every width, and the whole encoding, are the model's."""
    for block, twin in zip(model.blocks, loaded.blocks, strict=True):
        for (name, weight), (_, other) in zip(weights_of(block), weights_of(twin), strict=True):
            same = torch.equal(weight.steps.cpu(), other.steps)
            if not same or any(not torch.equal(weight.code(b).cpu(), other.code(b)) for b in weight.widths):
                raise ArtifactError(
                    f"the written artifact gives other codes or steps for layer '{name}' than the model; expected "
                    f"equal ones at {weight.widths} bits. Nothing was saved; its rounding must be 0 or 1 (tau 0 to 31)."
                )
    if _encode(loaded)[0] != manifest:
        raise ArtifactError(
            "the written artifact decodes to another network than the model; expected the same. Nothing was saved."
        )


def _move(part: Path, place: Path) -> None:
    """Give the finished folder its name; the one that had it goes, or comes back if that fails."""
    old = part.with_suffix(".old")
    if place.exists():
        place.rename(old)
    try:
        part.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
