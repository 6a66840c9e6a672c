"""Any damage to either file is refused with one clear message, or changes nothing."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS
from ptmq_lightning.device import cli
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.sealed import digest
from tests.artifact.tiny import tiny_model

CASES = 600  # for each packing: 1,200 in all
X = torch.tensor([[1.0, -1.0, 0.5], [0.25, 3.0, -4.0]])


@pytest.fixture(params=["latent", "nested"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return artifact.save(tiny_model(), tmp_path / "model", request.param)


def outputs(model: MultiBitModel) -> list[Tensor]:
    found = []
    for which in (4, 8, None) if model.has_float else (4, 8):
        model.switch(which)
        found.append(model(X))
    return found


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Flipped bits, overwritten, cut, inserted or doubled bytes at a random place."""
    at, length = draw.randrange(len(data)), draw.choice([1, 1, 2, 8, 64])
    kind = draw.choice(["flip", "flip", "flip", "overwrite", "truncate", "remove", "insert", "double"])
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
    if kind == "overwrite":
        return data[:at] + draw.randbytes(len(data[at : at + length])) + data[at + length :]
    if kind == "truncate":
        return data[:at]
    if kind == "remove":
        return data[:at] + data[at + length :]
    return data[:at] + (draw.randbytes(length) if kind == "insert" else data[at : at + length]) + data[at:]


def test_random_damage_is_refused_or_harmless(saved: Path) -> None:
    draw, expected = random.Random(0), outputs(artifact.load(saved))
    intact = {name: (saved / name).read_bytes() for name in (MANIFEST, TENSORS)}
    refused = 0
    for case in range(CASES):
        name = draw.choice(list(intact))
        (saved / name).write_bytes(damaged(intact[name], draw))
        try:
            model = artifact.load(saved)
        except ArtifactError as error:
            assert str(error).startswith(f"cannot load '{saved}': "), case
            refused += 1
        else:
            assert all(map(torch.equal, outputs(model), expected)), case
        (saved / name).write_bytes(intact[name])
    assert refused > 0.9 * CASES


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON object, and to every object and list inside."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))


def test_a_manifest_with_a_right_hash_and_a_wrong_value_never_crashes(saved: Path) -> None:
    """Not damage but forgery: such a file may load as another model; what it must not do is fail with a bare error."""
    intact = json.loads((saved / MANIFEST).read_text())
    wrong = itertools.cycle((None, -1, 10**9, "x", [], {}, 0.5))
    places = list(leaves(intact))
    refused, bare = 0, []
    for path in places:
        manifest = json.loads(json.dumps(intact))
        functools.reduce(operator.getitem, path[:-1], manifest)[path[-1]] = next(wrong)
        manifest["sha256"] = digest(manifest)
        (saved / MANIFEST).write_text(json.dumps(manifest))
        try:
            artifact.load(saved)
        except ArtifactError:
            refused += 1
        except Exception as error:
            bare.append((path, error))
        try:
            cli.main(["info", str(saved), "--layers"])
        except Exception as error:
            bare.append((path, error))
    assert not bare
    assert refused > 0.7 * len(places)  # the others, such as a name or a figure of info, make another sound model
