"""The format is the one that docs/artifact.md writes down, to the byte."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.manifest import ARTIFACT, MANIFEST, TENSORS
from ptmq_lightning.runtime.model import weights_of
from tests.artifact.tiny import tiny_model

PAGE = (Path(__file__).parents[2] / "docs" / "artifact.md").read_text()


def documented(packing: str) -> list[tuple[str, str]]:
    """(tensor, bytes in hexadecimal) in the order of the file."""
    part = PAGE.split(f"<!-- begin {packing} -->")[1].split(f"<!-- end {packing} -->")[0]
    return [(line.split()[0], "".join(line.split()[1:])) for line in part.strip().splitlines()]


def keys_of(table: str) -> list[str]:
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", table, re.M)
    return [key for row in rows for key in re.findall(r"\w+", row)]


@pytest.mark.parametrize("packing", ["latent", "nested"])
def test_the_tensors_are_the_documented_bytes(packing: str, tmp_path: Path) -> None:
    data = (artifact.save(tiny_model(), tmp_path / "model", packing) / TENSORS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    placed = sorted((entry["data_offsets"], name.removeprefix("blocks.0.")) for name, entry in header.items())
    found = [(name, data[8 + length :][first:last].hex()) for (first, last), name in placed]
    assert found == documented(packing)


@pytest.mark.parametrize("packing", ["latent", "nested"])
def test_documented_bytes_load_as_the_documented_codes(packing: str, tmp_path: Path) -> None:
    folder = artifact.save(tiny_model(), tmp_path / "model", packing)
    header = (folder / TENSORS).read_bytes()
    start = 8 + int.from_bytes(header[:8], "little")
    (folder / TENSORS).write_bytes(header[:start] + bytes.fromhex("".join(text for _, text in documented(packing))))
    loaded = artifact.load(folder)
    wanted = {
        int(b): json.loads(codes) for b, codes in re.findall(r"[Aa]t (\d) bits (?:the codes are )?(\[\[.*?\]\])", PAGE)
    }
    ((_, weight),) = weights_of(loaded.blocks[0])
    assert {bits: weight.code(bits).tolist() for bits in (4, 8)} == wanted


def test_the_manifest_is_the_documented_one(tmp_path: Path) -> None:
    text = (artifact.save(tiny_model(), tmp_path / "model") / MANIFEST).read_text()
    assert text == MANIFEST_OF_TINY
    whole, info = PAGE.split("## manifest.json")[1].split("## An example")[0].split("`info` has exactly")
    assert keys_of(whole) == list(json.loads(text))
    assert keys_of(info) == list(json.loads(text)["info"])
    assert f"format {ARTIFACT.version};" in PAGE


def test_a_bit_more_or_less_in_a_documented_tensor_is_refused(tmp_path: Path) -> None:
    folder = artifact.save(tiny_model(), tmp_path / "model")
    data = bytearray((folder / TENSORS).read_bytes())
    data[-1] ^= 4  # the first unused bit is 2: this is the last weight's rounding
    (folder / TENSORS).write_bytes(bytes(data))
    with pytest.raises(artifact.ArtifactError, match=r"the sha256 of tensor 'blocks\.0\.fc\.weight\.rounding' is"):
        artifact.load(folder)


def test_the_model_runs_at_both_widths(tmp_path: Path) -> None:
    model, x = tiny_model(), torch.tensor([[1.0, -1.0, 0.5]])
    loaded = artifact.load(artifact.save(model, tmp_path / "model", "nested"))
    for which in (4, 8):
        model.switch(which)
        loaded.switch(which)
        assert torch.equal(loaded(x), model(x))


MANIFEST_OF_TINY = (
    '{"format": "ptmq artifact", "version": 3, "info": {"name": "", "source": "", "input_size": null, "pr'
    'eprocessing": null, "groups": null, "data": null, "accuracy": null, "classes": []}, "pairs": [[4, 4]'
    ', [8, 8]], "assignments": {}, "layers": [{"name": "fc", "block": 0, "kind": "linear", "weight_shape"'
    ': [2, 3], "pin_w": null, "pin_a": null}], "blocks": [{"name": "all", "nodes": [{"name": "x", "op": "'
    'placeholder", "target": "x", "args": [], "kwargs": {}}, {"name": "quantizers_fc", "op": "call_module'
    '", "target": "quantizers.fc", "args": [{"node": "x"}], "kwargs": {}}, {"name": "fc", "op": "call_mod'
    'ule", "target": "fc", "args": [{"node": "quantizers_fc"}], "kwargs": {}}, {"name": "output", "op": "'
    'output", "target": "output", "args": [{"node": "fc"}], "kwargs": {}}], "modules": {"quantizers.fc": '
    '{"type": "ActivationQuantizer", "spec": {"widths": [4, 8], "owner": "fc", "pin": null, "table": fals'
    'e}}, "fc": {"type": "QuantLinear", "spec": {}, "bias": true, "biases": false, "weight": {"packing": '
    '"latent", "shape": [2, 3], "widths": [4, 8], "kind": "planes", "planes": 1, "plane_of": {"4": 0, "8"'
    ': 0}}}}}], "tensors": {"blocks.0.fc.bias": {"dtype": "float32", "shape": [2], "sha256": "a87f7282fda'
    '4eba58e73df7310253f02b521d912a9d040beb42c09dceae258fd"}, "blocks.0.fc.weight.latent": {"dtype": "uin'
    't8", "shape": [9], "sha256": "3ca6dc6694c4a96df5505dd0037567d9a6674e29093ca1e68c8c0ea3646b03ab"}, "b'
    'locks.0.fc.weight.latent_step": {"dtype": "float32", "shape": [2], "sha256": "2a5a875105ab36872d8607'
    '351d6bb7978285394be44ea6619c41e3402880e2e2"}, "blocks.0.fc.weight.ratios": {"dtype": "float32", "sha'
    'pe": [2, 2], "sha256": "c9801a2c72db5e2f961e8184262a8c98e38b5e9a3e0d6baa3583386aeab4e7fd"}, "blocks.'
    '0.fc.weight.rounding": {"dtype": "uint8", "shape": [1], "sha256": "ee6bb86b44339392bae631c8f61dd8f00'
    '9243c635adab33c0b20923a2794bf22"}, "blocks.0.fc.weight.steps": {"dtype": "float32", "shape": [2, 2],'
    ' "sha256": "664963c4bd71edbc4dd1ebe01cf0a9bf94a1e320424e8d2b7df8b20a638d7e22"}, "blocks.0.quantizers'
    '.fc.steps": {"dtype": "float32", "shape": [2], "sha256": "4ef9e89550bf953bf7e5293459b8d71ef603351f39'
    '6011bab5295f179122c8b3"}, "blocks.0.quantizers.fc.zero_points": {"dtype": "float32", "shape": [2], "'
    'sha256": "137bc2cad108633aaad54d6544cd222d6d3cd06053e892578db8040485d19544"}}, "sha256": "e5fdb1c45d'
    '47e1756eb56805d9f9eb35db0bf886f5dd0a341b6083e299d5722d"}'
)
