"""A program of coremltools as an .mlpackage on disk, and back."""

from __future__ import annotations

import io
import json
import logging
import uuid
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

WEIGHTS = Path("Data") / "com.apple.CoreML" / "weights"


def coremltools() -> Any:
    """The package, without its warnings that this is no Mac."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools as package

    return package


def save(program: Any, path: Path) -> None:
    """Write a program as it is: no pass of the converter changes it. The same program makes the same bytes."""
    ct = coremltools()
    with redirect_stderr(io.StringIO()):  # a progress bar for each of its pipelines
        model = ct.convert(
            program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS18, skip_model_load=True,
            pass_pipeline=ct.PassPipeline.EMPTY, compute_precision=ct.precision.FLOAT32,
        )  # fmt: skip
        model.save(str(path))
    manifest = path / "Manifest.json"
    manifest.write_text(_with_fixed_keys(json.loads(manifest.read_text(encoding="utf-8"))), encoding="utf-8")


def _with_fixed_keys(manifest: dict[str, Any]) -> str:
    """The manifest of a package, its items keyed by what they are instead of at random."""
    entries, root = manifest["itemInfoEntries"], manifest["rootModelIdentifier"]
    keys = {old: str(uuid.uuid5(uuid.NAMESPACE_URL, entry["path"])) for old, entry in entries.items()}
    fixed = {keys[old]: entries[old] for old in sorted(entries, key=keys.__getitem__)}
    return json.dumps({**manifest, "itemInfoEntries": fixed, "rootModelIdentifier": keys[root]}, indent=4) + "\n"


def load(path: Path) -> Any:
    """The program that an .mlpackage holds."""
    ct = coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load as read

    spec = ct.utils.load_spec(str(path))
    return read(spec, specification_version=spec.specificationVersion, file_weights_dir=str(path / WEIGHTS))
