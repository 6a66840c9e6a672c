"""Zero points of weights are stored with them, a model without any is stored as ever, and nothing else passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.manifest import MANIFEST
from ptmq_lightning.artifact.verify import verify
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.model import weights_of
from ptmq_lightning.runtime.sealed import digest
from ptmq_lightning.runtime.spec import BitWidth
from tests.networks import small_model

ZEROS = StepSize("nested", free_widths=[3, 4], zero_points=[3, 4])


def specs(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / MANIFEST).read_text())
    return {path: m["weight"] for b in manifest["blocks"] for path, m in b["modules"].items() if "weight" in m}


@pytest.mark.parametrize("packing", ["latent", "nested", "auto"])
def test_a_model_with_zero_points_comes_back_as_it_was(packing: str, tmp_path: Path) -> None:
    pairs = [BitWidth(3, 3), BitWidth(8, 8)]  # whose codes take no more than the latent integers
    model = small_model(pairs=pairs, step_size=ZEROS)
    artifact.save(model, tmp_path / "model", packing=packing)
    loaded = dict(weights_of(artifact.load(tmp_path / "model")))
    moved = set()
    for name, weight in weights_of(model):
        moved |= {*weight.moved}
        assert loaded[name].moved == weight.moved
        for bits in weight.widths:
            assert torch.equal(loaded[name].at(bits), weight.at(bits)), (name, bits)
    assert moved == {3} and list(verify(tmp_path / "model"))
    assert {tuple(spec.get("moved", ())) for spec in specs(tmp_path / "model").values()} == {(), (3,)}


def test_a_model_without_zero_points_is_stored_as_before(tmp_path: Path) -> None:
    artifact.save(small_model(), tmp_path / "model")
    assert all("moved" not in spec for spec in specs(tmp_path / "model").values())


@pytest.mark.parametrize("value", [1, -3, 127])
def test_zero_points_that_nobody_writes_are_refused(value: int, tmp_path: Path) -> None:
    model = small_model(step_size=ZEROS)
    for _, weight in weights_of(model):
        if weight.moved:
            weight.zero_points[0, 0] = value
    with pytest.raises(
        ArtifactError, match=r"zero points from .* at the widths \[3, 4\].*expected -2 to 0 half levels"
    ):
        artifact.save(model, tmp_path / "model")
        artifact.load(tmp_path / "model")


@pytest.mark.parametrize(("moved", "message"), [
    (None, r"has zero points of shape \(5, 8\)"),
    ([3], r"at the widths \[3, 4\]"),
    ([3, 4, 5], r"at the widths \[3, 4\]"),
    ([7], r"moved is 7"),
    ([], "moved"),
])  # fmt: skip
def test_a_manifest_that_says_otherwise_is_refused(moved: list[int] | None, message: str, tmp_path: Path) -> None:
    artifact.save(small_model(step_size=ZEROS), tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / MANIFEST).read_text())
    for block in manifest["blocks"]:
        for module in block["modules"].values():
            if "moved" in module.get("weight", {}):
                module["weight"].pop("moved")
                module["weight"] |= {} if moved is None else {"moved": moved}
    manifest["sha256"] = digest(manifest)
    (tmp_path / "model" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=message):
        artifact.load(tmp_path / "model")
