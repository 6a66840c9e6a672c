"""`ptmq info DIR`: what an artifact is, from its manifest and the names of its tensors. Without torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptmq_lightning.artifact.fields import bits_per_weight
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS, read_manifest
from ptmq_lightning.runtime.info import ModelInfo, figure
from ptmq_lightning.runtime.spec import BitWidth


def info(folder: Path, *, layers: bool = False) -> Iterator[str]:
    """Sizes, widths and accuracy, line by line.

    Args:
        folder: an artifact.
        layers: a row for each layer too.

    Raises:
        ArtifactError: a folder that is no whole artifact, or whose manifest describes no network.
    """
    manifest = read_manifest(folder)
    about = ModelInfo.from_json(manifest["info"])
    specs = {
        path: module["weight"]
        for block in manifest["blocks"]
        for path, module in block["modules"].items()
        if "weight" in module
    }
    yield from _sizes(folder, manifest, about, specs)
    yield from _accuracy(about)
    if layers:
        yield from _layers(manifest["layers"], specs)


def _sizes(folder: Path, manifest: dict[str, Any], about: ModelInfo, specs: dict[str, Any]) -> Iterator[str]:
    weights = sum(math.prod(spec["shape"]) for spec in specs.values())
    sizes = [(folder / name).stat().st_size for name in (TENSORS, MANIFEST)]
    packings = sorted({spec["packing"] for spec in specs.values()})
    yield f"network   {about.name or 'unnamed'} ({about.source or 'source unknown'})"
    yield f"weights   {weights:,} in {len(specs)} layers, {len(manifest['layers'])} rows in the layer table"
    yield (
        f"size      {sum(sizes):,} bytes ({TENSORS} {sizes[0]:,}, {MANIFEST} {sizes[1]:,}), "
        f"{8 * sum(sizes) / max(weights, 1):.2f} bits per weight for all widths; float32 {4 * weights:,}"
    )
    kept = "with" if packings == ["latent"] else "without"
    yield f"packing   {' and '.join(packings)}, {kept} the float network; format {manifest['version']}"
    yield f"widths    {' '.join(str(BitWidth.parse(pair)) for pair in manifest['pairs'])}"
    if about.classes:
        first = ", ".join(about.classes[:3]) + (", ..." if len(about.classes) > 3 else "")
        yield f"classes   {len(about.classes)}: {first}"
    if manifest["assignments"]:
        yield f"named     {' '.join(manifest['assignments'])}"


def _accuracy(about: ModelInfo) -> Iterator[str]:
    accuracy = about.accuracy
    if accuracy is None or not accuracy.rows:
        yield "accuracy  not stored"
        return
    data = f" of {about.data}" if about.data else ""
    yield f"accuracy  on {accuracy.images} images{data}, percent"
    yield _line("", "top1", "top5", "agree")
    yield _line("float", figure(accuracy.fp["top1"]), figure(accuracy.fp["top5"]))
    for row in accuracy.rows:
        yield _line(row.config, figure(row.top1), figure(row.top5), figure(row.agreement))


def _line(name: str, *figures: str) -> str:
    return "  ".join([f"{name:>10}", *(f"{text:>6}" for text in figures)])


def _layers(rows: list[dict[str, Any]], specs: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield f"{'layer':<32} {'kind':<7} {'shape':<18} {'bits':>4}  pinned"
    for row in rows:
        bits = bits_per_weight(specs[row["name"]]) if row["name"] in specs else "-"
        pins = "".join(f"{side}{row[f'pin_{side}']}" for side in "wa" if row[f"pin_{side}"])
        shape = "x".join(map(str, row["weight_shape"] or ())) or "-"
        yield f"{row['name']:<32} {row['kind']:<7} {shape:<18} {bits:>4}  {pins or '-'}"
