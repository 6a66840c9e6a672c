"""A multi export becomes a page on which a browser gives the answers that `Session` gives."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ptmq_lightning.artifact.artifact import save
from ptmq_lightning.device import cli, demo
from ptmq_lightning.device.pictures import open_picture
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.preprocessing import Preprocessing
from tests.device.chromium import CHROMIUM, tab
from tests.networks import small_model

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "examples" / "node_modules" / "onnxruntime-web" / "dist"
pytestmark = pytest.mark.runtimes
PREPROCESSING = Preprocessing((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bicubic", 0.8)
WIDTHS = ["w8a8", "w3a3", "w4a4", "w6a6"]
AGREEING = "[...document.querySelectorAll('#rows tr')].map(row => row.lastChild.textContent)"  # samples, of each width


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = small_model()
    model.info = ModelInfo("small", "random weights", preprocessing=PREPROCESSING, classes=tuple("abcde"))
    folder = tmp_path_factory.mktemp("demo") / "export"
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    write_export(model, folder, images, WIDTHS, form="multi")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Of all proportions, as PNG: JPEG is decoded a little otherwise from program to program."""
    made, random = [], np.random.default_rng(0)
    for number, (height, width) in enumerate([(20, 31), (8, 8), (33, 12), (5, 9)]):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        made.append(tmp_path / "photos" / f"{number}.png")
        made[-1].parent.mkdir(exist_ok=True)
        coarse.resize((width, height)).save(made[-1])
    return made


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    """A folder with the names of onnxruntime-web's files."""
    (tmp_path / "dist").mkdir()
    for name in demo.RUNTIME:
        (tmp_path / "dist" / name).write_bytes(b"nothing")
    return tmp_path / "dist"


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / demo.SETTINGS).read_text())
    return found


def test_a_page_stands_in_a_folder_with_all_that_it_loads(
    export: Path, photos: list[Path], runtime: Path, tmp_path: Path
) -> None:
    demo.write(export, tmp_path / "page", [photos[0].parent], runtime)
    found = settings(tmp_path / "page")
    assert [(width["name"], width["value"]) for width in found["widths"]] == [
        ("w3a3", 3), ("w4a4", 4), ("w6a6", 6), ("w8a8", 8)
    ]  # fmt: skip
    assert found["input"] == "bits" and found["classes"] == list("abcde") and found["name"] == "small"
    assert found["preprocessing"]["crop_pct"] == 0.8
    assert [(tmp_path / "page" / "samples" / name).read_bytes() for name in found["samples"]] == [
        photo.read_bytes() for photo in photos
    ]
    model = (export / "model.onnx").read_bytes()
    assert (tmp_path / "page" / "model.onnx").read_bytes() == model and found["bytes"] == len(model)
    text = (tmp_path / "page" / "index.html").read_text()
    assert "https://" not in text and "http://" not in text  # nothing of another server


def test_the_command_writes_beside_the_export_and_replaces_its_own_page(
    export: Path, runtime: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert cli.main(["demo", str(export), "--runtime", str(runtime), "--no-serve"]) == 0
    assert "export-demo: " in capsys.readouterr().out
    assert settings(export.with_name("export-demo"))["samples"] == []


def test_many_pictures_are_drawn_evenly(
    export: Path, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MOST", 3)
    for number in range(9):
        Image.new("RGB", (2, 2), (number, 0, 0)).save(tmp_path / f"{number}.png")
    demo.write(export, tmp_path / "page", [tmp_path / f"{number}.png" for number in range(9)], runtime)
    kept = [Image.open(tmp_path / "page" / "samples" / name) for name in settings(tmp_path / "page")["samples"]]
    assert [image.getpixel((0, 0)) for image in kept] == [(0, 0, 0), (3, 0, 0), (6, 0, 0)]


def test_the_page_is_served_on_loopback_with_the_types_that_browsers_ask_for(
    export: Path, runtime: Path, tmp_path: Path
) -> None:
    demo.write(export, tmp_path / "page", [], runtime)
    with served(tmp_path / "page") as address:
        assert address.startswith("http://127.0.0.1:")
        types = {}
        for name in ("", "ort/" + demo.RUNTIME[0], "ort/" + demo.RUNTIME[2], "model.json"):
            with urllib.request.urlopen(address + name) as answer:
                types[name] = answer.headers["Content-Type"]
        assert list(types.values()) == ["text/html", "text/javascript", "application/wasm", "application/json"]


def test_a_port_that_another_program_has_is_named(tmp_path: Path) -> None:
    with served(tmp_path) as address:
        port = int(address.rstrip("/").rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port} .*--port"):
            demo.server(tmp_path, port)


@pytest.mark.parametrize("port", ["65536", "-1", "http"])
def test_a_port_that_is_none_is_refused(port: str, export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", str(export), "--port", port])
    assert "--port" in (text := capsys.readouterr().err) and "0 to 65535" in text


class served:
    """A folder's server in a thread of its own; its address."""

    def __init__(self, folder: Path) -> None:
        self.server = demo.server(folder, 0)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_address[1]}/"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.main(["demo", *map(str, arguments), "--no-serve"]) == 2
    return capsys.readouterr().err


def test_what_is_no_multi_export_is_refused(runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_export(small_model(), tmp_path / "static", torch.randn(4, 3, 8, 8), ["w4a4"])
    assert "--form multi" in refused(capsys, tmp_path / "static", "--runtime", runtime)
    save(small_model(), tmp_path / "run" / "model")
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        said = refused(capsys, folder, "--runtime", runtime)
        assert "found an artifact" in said and "--form multi" in said


def test_a_missing_runtime_is_named_with_its_cure(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "npm install onnxruntime-web" in refused(capsys, export)


def test_no_folder_of_others_is_replaced(
    export: Path, runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert "--out" in refused(capsys, export, "--runtime", runtime, "--out", tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").exists()


def test_pictures_that_no_browser_shows_are_refused(
    export: Path, runtime: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "scan.tif")
    assert ".png" in refused(capsys, export, "--runtime", runtime, "--images", tmp_path / "scan.tif")


def test_predict_answers_with_an_export_as_with_its_session(
    export: Path, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", str(export), *map(str, photos), "--bits", "w3a3", "--json"]) == 0
    found = [json.loads(line)["classes"][0]["index"] for line in capsys.readouterr().out.splitlines()]
    session = Session(export)
    session.switch("w3a3")
    assert found == session(torch.stack([open_picture(photo, PREPROCESSING) for photo in photos])).argmax(1).tolist()


@pytest.fixture
def page(export: Path, photos: list[Path], tmp_path: Path) -> Iterator[Any]:
    demo.write(export, tmp_path / "page", photos[:3], WEB)
    with served(tmp_path / "page") as address, tab(tmp_path / "profile") as opened:
        opened.send("Page.navigate", url=address)
        opened.wait(f"{AGREEING}.length > 0 && {AGREEING}.every(cell => cell.endsWith('of 3'))")
        yield opened


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or not WEB.exists(), reason="needs chromium and npm install --prefix examples")
def test_a_browser_answers_as_the_session_does_wherever_the_slider_stands(
    page: Any, export: Path, photos: list[Path]
) -> None:
    session, names = Session(export), ["w3a3", "w4a4", "w6a6", "w8a8"]
    for photo in [*photos, photos[0]]:
        give(page, photo)
        x = open_picture(photo, PREPROCESSING)
        pixels = np.array(page.js("window.ptmq.state().pixels"), dtype=np.float32).reshape(x.shape)
        assert np.abs(pixels - x.numpy()).max() < 1e-5  # Pillow's resize, pixel for pixel
        page.js("document.getElementById('width').focus()")
        page.key("End")
        for index in reversed(range(len(names))):
            session.switch(names[index])
            logits = session(x[None])[0]
            found = page.js(f"window.ptmq.state().answers[{index}].logits")
            # Integers are exact everywhere; the floats between them are rounded by other instructions.
            assert np.allclose(found, logits.numpy(), atol=0.02 * float(logits.std())), names[index]
            assert page.js("document.getElementById('name').textContent") == names[index]
            shown = page.js("document.querySelector('#classes li span').textContent")
            assert shown == "abcde"[int(logits.argmax())]
            page.key("ArrowLeft")
    assert page.js(AGREEING)[-1] == "3 of 3"


def give(page: Any, photo: Path) -> None:
    """Choose a file on the page, as a person does, and wait for the answers."""
    page.js("document.getElementById('state').textContent = ''")
    root = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[str(photo)])
    page.wait("document.getElementById('state').textContent.startsWith('Ready')")
