"""An artifact that a stranger made for harm is one message at once, before anything is built of it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ptmq_lightning.artifact import artifact, hub
from ptmq_lightning.artifact.bounds import check_graph
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS, read_manifest
from ptmq_lightning.device import cli
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.sealed import digest
from tests.artifact.tiny import tiny_model

SECONDS = 60.0  # of processor time, on the slowest of machines: a bomb would take hours, or all memory
PICTURES = {
    "input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 0.9,
    "crop_mode": "center",
}  # fmt: skip


def forge(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The tiny model with a changed manifest whose hash is right."""
    artifact.save(tiny_model(), folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["sha256"] = digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def nodes(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return manifest["blocks"][0]["nodes"]  # type: ignore[no-any-return]


def called(target: str, *args: Any, name: str = "bomb", op: str = "call_function") -> dict[str, Any]:
    return {"name": name, "op": op, "target": target, "args": list(args), "kwargs": {}}


def before_the_end(*added: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: nodes(manifest).__setitem__(slice(-1, -1), added)


def pictures(**changed: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["info"].update(preprocessing=PICTURES | changed)


def module(path: str, **changed: Any) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["blocks"][0]["modules"][path].update(changed)


X = {"node": "x"}
LAYER = {"name": "a", "block": 0, "kind": "linear", "weight_shape": [2, 3], "pin_w": None, "pin_a": None}
BOMBS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {  # -> what the message must name
    "large images": (lambda m: m["info"].update(input_size=[3, 200_000, 200_000]), "input_size"),
    "large preprocessing": (pictures(input_size=[3, 200_000, 200_000]), "input_size"),
    "a tiny crop": (pictures(crop_pct=1e-6), "crop_pct"),
    "std of zero": (pictures(std=[0.0] * 3), "std"),
    "a power": (before_the_end(called("operator.pow", 9, 10**9)), "operator.pow"),
    "powers of powers": (
        before_the_end(*(called("operator.pow", {"node": f"n{i}"}, 64, name=f"n{i + 1}") for i in range(9))),
        "number of",
    ),
    "a number doubled in length again and again": (
        before_the_end(
            called("operator.add", 9, 9, name="n0"),
            *(called("operator.mul", {"node": f"n{i}"}, {"node": f"n{i}"}, name=f"n{i + 1}") for i in range(60)),
        ),
        "operator.mul",
    ),
    "a list many times": (before_the_end(called("operator.mul", [0], 10**9)), "operator.mul"),
    "a list doubled again and again": (
        before_the_end(
            called("operator.add", [0], [0], name="n0"),
            *(called("operator.add", {"node": f"n{i}"}, {"node": f"n{i}"}, name=f"n{i + 1}") for i in range(40)),
        ),
        "sequence",
    ),
    "a text with a width": (before_the_end(called("operator.mod", "%999999999d", 1)), "operator.mod"),
    "a wide margin": (before_the_end(called("F.pad", X, [0, 10**9])), "pad"),
    "many copies": (before_the_end(called("repeat", X, 10**9, 1, op="call_method")), "repeat"),
    "a large layer": (
        lambda m: m["blocks"][0]["modules"].update(up={"type": "Upsample", "spec": {"scale_factor": 1e9}}),
        "Upsample",
    ),
    "a transposed convolution of a stranger's size": (
        lambda m: m["blocks"][0]["modules"].update(up={"type": "QuantConvTranspose2d", "spec": {"stride": [9**9, 1]}}),
        "QuantConvTranspose2d",
    ),
    "three million widths": (
        module("quantizers.fc", spec={"widths": [8] * 3_000_000, "owner": "fc", "pin": None, "table": False}),
        "widths",
    ),
    "three million pairs": (lambda m: m.update(pairs=[[4, 4]] * 3_000_000), "bytes"),
    "a million layers": (lambda m: m.update(layers=[LAYER] * 1_000_000), "bytes"),
    "too many layers": (lambda m: m.update(layers=[LAYER] * 20_000), "layers"),
    "too many classes": (lambda m: m["info"].update(classes=["x"] * 100_001), "info.classes"),
    "too many pairs": (lambda m: m.update(pairs=[[4, 4]] * 1000), "pairs"),
    "a weight of every memory": (
        module("fc", weight={"packing": "latent", "shape": [2**20, 2**20], "widths": [4, 8], "kind": "nearest",
                             "planes": 0, "plane_of": {}}),
        "shape",
    ),
    "planes without end": (
        module("fc", weight={"packing": "latent", "shape": [2, 3], "widths": [4, 8], "kind": "planes",
                             "planes": 10**12, "plane_of": {}}),
        "planes",
    ),
    "a long number": (lambda m: m["info"].update(input_size=[3, 10**30, 8]), "whole number"),
    "a long text": (lambda m: m["info"].update(name="x" * 10**6), "characters"),
    "no number": (lambda m: m["info"].update(input_size=[3, float("nan"), 8]), "nan"),
    "a tensor without a hash": (lambda m: m["tensors"].update({"blocks.0.fc.bias": {}}), "blocks.0.fc.bias"),
    "a pin that is no width": (
        module("quantizers.fc", spec={"widths": [4, 8], "owner": "fc", "pin": 6, "table": False}), "pin"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_one_message_at_once(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, named = BOMBS[name]
    place = forge(tmp_path / "model", change)
    started = time.process_time()
    for command in ("info", "verify"):
        assert cli.main([command, str(place)]) == 1
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and len(said.err) < 1000
        assert said.err.startswith(f"ptmq: cannot load '{place}': ") and named in said.err
    assert time.process_time() - started < SECONDS


def test_what_networks_do_with_sizes_is_no_bomb() -> None:
    graph = [
        called("x", name="x", op="placeholder"),
        called("size", X, name="size", op="call_method"),
        called("operator.getitem", {"node": "size"}, {"slice": [None, 2, None]}, name="first"),
        called("operator.add", {"node": "first"}, {"tuple": [4, 5]}, name="whole"),
        called("size", X, -1, name="width", op="call_method"),
        called("operator.mul", {"node": "width"}, {"node": "width"}, name="area"),
        called("operator.pow", X, 3, name="cube"),
        called("operator.pow", {"node": "area"}, -0.5, name="scale"),
        called("F.pad", X, [1, 1, 2, 2], "constant", -1e9, name="padded"),
        *(called("operator.add", {"node": f"n{i}"}, X, name=f"n{i + 1}") for i in range(500)),
    ]
    check_graph(graph)


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    artifact.save(tiny_model(), tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    os.mkfifo(tmp_path / "model" / name)
    with pytest.raises(ArtifactError, match=f"found no {name}"):
        read_manifest(tmp_path / "model")


def steer(manifest: dict[str, Any]) -> None:
    text = "\x1b[2Jevil\n[link](https://evil) <img> | ‮"
    manifest["info"].update(name=text, source=text, data=text)


def test_text_of_a_stranger_steers_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(forge(tmp_path / "model", steer))]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert all(line.isprintable() for line in lines) and r"\x1b[2Jevil\n" in lines[0]


def test_text_of_a_stranger_is_no_markup_in_a_card(tmp_path: Path) -> None:
    card = hub.card(forge(tmp_path / "model", steer), "me/mine")
    assert "evil" in card
    assert not any(mark in card for mark in ("\x1b", "[link]", "https://evil", "<img>", "‮"))
