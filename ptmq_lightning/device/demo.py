"""`ptmq demo DIR`: a page on which a browser runs a multi export at every width, written to a folder and served from
loopback.

onnxruntime-web runs the file in it. Nothing on it comes from another server.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ptmq_lightning.artifact.manifest import MANIFEST as ARTIFACT_MANIFEST
from ptmq_lightning.device.pictures import preprocessing_of
from ptmq_lightning.device.predict import pictures
from ptmq_lightning.export.folder import read_manifest
from ptmq_lightning.export.onnx_multi import BITS
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.files import replacing_folder
from ptmq_lightning.runtime.info import ModelInfo

LOOPBACK = "127.0.0.1"
SETTINGS, MODEL = "model.json", "model.onnx"
PAGE = Path(__file__).resolve().parent / "page" / "index.html"
# Of onnxruntime-web: the program for WebAssembly alone, which loads the other two.
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
SHOWN = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")  # pictures that browsers decode
MODES = ("center", "squash")  # of `device.pictures`
MOST = 60  # pictures to choose from


def run(options: argparse.Namespace) -> Iterator[str]:
    """Write the page and serve it until it is interrupted.

    Raises:
        ConfigError: an export of another form, a runtime that is not there, a folder that holds something else, a port
            that another program has.
    """
    place = options.folder.resolve()
    out = options.out or place.with_name(f"{place.name}-demo")
    write(options.folder, out, options.images, options.runtime)
    yield f"{out}: {sum(file.stat().st_size for file in out.rglob('*') if file.is_file()):,} bytes"
    if options.no_serve:
        yield "any web server can serve this folder as it is"
        return
    with server(out, options.port) as made:
        yield f"http://{LOOPBACK}:{made.server_address[1]}/  (stop it with Ctrl-C)"
        made.serve_forever()


def write(export: Path, out: Path, images: Sequence[Path], given: Path | None) -> None:
    """The page with everything that it needs, in a folder of its own. given: the folder of onnxruntime-web."""
    settings, runtime = settings_of(export), runtime_in(given)
    _check_place(out)
    with replacing_folder(out.resolve()) as part:
        shutil.copy(PAGE, part / PAGE.name)
        (part / "ort").mkdir()
        for name in RUNTIME:
            shutil.copy(runtime / name, part / "ort" / name)
        shutil.copy(export / settings.pop("file"), part / MODEL)
        settings["samples"] = _copied(images, part / "samples")
        (part / SETTINGS).write_text(json.dumps(settings, indent=1), encoding="utf-8")


def settings_of(export: Path) -> dict[str, Any]:
    """What the page is told: the widths from narrow to wide, how a picture becomes an image, names of the classes."""
    if (export / ARTIFACT_MANIFEST).is_file() or (export / "model" / ARTIFACT_MANIFEST).is_file():
        raise ConfigError(
            f"found an artifact in '{export}'; expected an export of it. Write one with ptmq export DIR --images "
            f"PICTURES --form multi, and give its folder."
        )
    manifest = read_manifest(export)
    if manifest["form"] != "multi":
        raise ConfigError(
            f"found an export with form={manifest['form']!r} in '{export}'; expected one file for every width. Export "
            f"with --form multi."
        )
    info = ModelInfo.from_json(manifest["info"])
    image = preprocessing_of(info)
    if image.input_size[0] not in (1, 3) or image.crop_mode not in MODES:
        raise ConfigError(
            f"found {image.input_size[0]} channels and crop_mode={image.crop_mode!r} in the model's preprocessing; "
            f"expected 1 or 3 and one of {', '.join(MODES)} for pictures on a page."
        )
    choice, bytes_of = manifest["choice"], manifest["alone"]
    rank = choice["values"] if choice["input"] == BITS else bytes_of  # an index tells nothing of the width
    names = sorted(choice["values"], key=lambda name: rank[name])
    return {
        "file": manifest["files"]["*"],
        "bytes": (export / manifest["files"]["*"]).stat().st_size,
        "name": info.name,
        "input": choice["input"],
        "widths": [{"name": name, "value": choice["values"][name], "bytes": bytes_of[name]} for name in names],
        "classes": list(info.classes),
        "preprocessing": asdict(image),
    }


def runtime_in(given: Path | None) -> Path:
    """onnxruntime-web's dist folder; without one given that of node_modules in the current folder."""
    folder = given or Path("node_modules/onnxruntime-web/dist")
    if all((folder / name).is_file() for name in RUNTIME):
        return folder
    raise ConfigError(
        f"found no onnxruntime-web in '{folder}'; expected {RUNTIME[0]} and its wasm files. "
        f"Run `npm install onnxruntime-web` here, or give its dist folder as --runtime."
    )


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a folder on the loopback address, which no other machine reaches. Raises ConfigError."""
    try:
        return ThreadingHTTPServer((LOOPBACK, port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        raise ConfigError(
            f"cannot serve the page at port {port} ({error.strerror}); expected a port that no other program has. "
            f"Choose one with --port; 0 takes any."
        ) from error


class _Handler(SimpleHTTPRequestHandler):
    """Without a line in the terminal for each file. Types of these files differ between systems."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".html": "text/html",
        ".css": "text/css", ".json": "application/json",
    }  # fmt: skip

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # another export may stand here next time
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _copied(images: Sequence[Path], folder: Path) -> list[str]:
    """The names of the pictures in their folder, evenly drawn where there are many."""
    found = [path for path in pictures(images) if path.suffix.lower() in SHOWN]
    if images and not found:
        raise ConfigError(f"found no picture that browsers show; expected files named {', '.join(SHOWN)}.")
    count = min(len(found), MOST)
    made = []
    for number in range(count):
        path = found[number * len(found) // count]
        name = f"{number:02d}{path.suffix.lower()}"
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder / name)
        made.append(name)
    return made


def _check_place(out: Path) -> None:
    held = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if out.is_file() or (held and SETTINGS not in held):
        raise ConfigError(
            f"cannot write the page to '{out}': found something else there; expected a new folder or an earlier page. "
            f"Choose another folder with --out."
        )
