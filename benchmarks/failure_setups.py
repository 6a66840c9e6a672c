"""How the failures of benchmarks/failure_cases.py are set up: small changes of a case's folder, and the commands."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SMOKE = ["recon=smoke", "recon.iters=2", "data.calibration_images=16", "bits.evaluate=[w8a8,w4a4]"]


@dataclass
class At:
    """A case's folder while its command runs. file_bytes: no file may become larger. interrupt: the text of the log
    after which Ctrl-C is pressed. held: what is let go afterwards."""

    folder: Path
    file_bytes: int = 0
    interrupt: str | None = None
    held: ExitStack = field(default_factory=ExitStack)

    def __truediv__(self, name: str) -> Path:
        return self.folder / name


Setup = Callable[[At], object]


@contextmanager
def prepared(folder: Path, steps: tuple[Setup, ...]) -> Iterator[At]:
    at = At(folder)
    with at.held:
        for step in steps:
            step(at)
        yield at


def call(command: list[str]) -> int:
    """Run a command in this process; its exit code."""
    from ptmq_lightning.compose import cli as train
    from ptmq_lightning.compose import folder
    from ptmq_lightning.device import cli as device
    from ptmq_lightning.report import command as report

    name, *arguments = command
    if name == "ptmq":
        return device.main(arguments)
    if name == "report":
        return report.main(arguments)
    sys.argv = [f"{name}.py", *arguments]
    if name == "killed":
        keep = folder.RunFolder.keep

        def last(self: Any, model: Any, index: int, result: Any) -> None:
            keep(self, model, index, result)
            if index == 2:
                os._exit(9)

        folder.RunFolder.keep = last  # type: ignore[method-assign]
    train.main()
    return 0


def pictures(base: Path) -> None:
    """cat.png, thirty pictures in ten class folders, and images as the digits network takes them."""
    from PIL import Image

    draw = np.random.default_rng(0)
    for number in range(10):
        (base / "pictures" / str(number)).mkdir(parents=True)
        for index in range(3):
            pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(base / "pictures" / str(number) / f"{index}.png")
    Image.fromarray(draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(base / "cat.png")
    np.save(base / "images.npy", draw.standard_normal((8, 3, 16, 16)).astype(np.float32))


def write(path: str, content: str | bytes = "") -> Setup:
    def step(at: At) -> None:
        (at / path).parent.mkdir(parents=True, exist_ok=True)
        (at / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return step


def cut(path: str, share: float = 0.5) -> Setup:
    """Only the first part of a file is left."""

    def step(at: At) -> None:
        data = (at / path).read_bytes()
        (at / path).write_bytes(data[: int(len(data) * share)])

    return step


def flip(path: str) -> Setup:
    def step(at: At) -> None:
        data = bytearray((at / path).read_bytes())
        data[-1] ^= 1
        (at / path).write_bytes(bytes(data))

    return step


def remove(path: str) -> Setup:
    return lambda at: (at / path).unlink()


def folder(path: str) -> Setup:
    """A folder in the place of whatever is there."""

    def step(at: At) -> None:
        (at / path).unlink(missing_ok=True)
        (at / path).mkdir(parents=True)

    return step


def pipe(path: str) -> Setup:
    """A pipe that nobody writes to in the place of a file."""

    def step(at: At) -> None:
        (at / path).unlink(missing_ok=True)
        os.mkfifo(at / path)

    return step


def forge(path: str, change: Callable[[Any], object]) -> Setup:
    """A sealed manifest with a change and the right hash."""

    def step(at: At) -> None:
        from ptmq_lightning.runtime.sealed import digest

        manifest = json.loads((at / path).read_text(encoding="utf-8"))
        change(manifest)
        manifest["sha256"] = digest(manifest)
        (at / path).write_text(json.dumps(manifest), encoding="utf-8")

    return step


def rehash(name: str, content: bytes) -> Setup:
    """A file of an export with other bytes, and its hash made right."""
    import hashlib

    def step(at: At) -> None:
        (at / "onnx" / name).write_bytes(content)
        forge("onnx/export.json", lambda m: m["hashes"].update({name: hashlib.sha256(content).hexdigest()}))(at)

    return step


def tensor(name: str, value: float) -> Setup:
    """The run's artifact with one number changed and all hashes right."""

    def step(at: At) -> None:
        import safetensors.torch

        from ptmq_lightning.artifact.tensors import label

        file = at / "run/model/model.safetensors"
        tensors = safetensors.torch.load_file(file)
        key = next(key for key in sorted(tensors) if key.endswith(name))
        tensors[key].view(-1)[0] = value
        safetensors.torch.save_file(tensors, file)
        forge("run/model/manifest.json", lambda m: m["tensors"].update({key: label(tensors[key])}))(at)

    return step


def checkpoint(path: str, change: Callable[[dict[str, Any]], object]) -> Setup:
    """The digits' own weights with a change."""

    def step(at: At) -> None:
        import safetensors.torch

        weights = safetensors.torch.load_file(next((at / "outputs/digits").glob("*.safetensors")))
        change(weights)
        safetensors.torch.save_file(weights, at / path)

    return step


def first(weights: dict[str, Any], ending: str) -> Any:
    return weights[next(key for key in sorted(weights) if key.endswith(ending))]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


EVIL = pickle.dumps({"state_dict": Evil()})


def no_space(path: str, megabytes: float = 0.25) -> Setup:
    """A file system of its own with little room at `path`; needs root, else files are limited to as much."""

    def step(at: At) -> None:
        (at / path).mkdir(parents=True, exist_ok=True)
        size = f"size={int(megabytes * 1024)}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(at / path)], capture_output=True)
        if done.returncode:
            at.file_bytes = int(megabytes * 2**20)
        else:
            at.held.callback(subprocess.run, ["umount", "-l", str(at / path)], capture_output=True)

    return step


def read_only(path: str) -> Setup:
    """A folder that nobody can write to, not even root; where it cannot be mounted, a file in its place."""

    def step(at: At) -> None:
        (at / path).mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(at / path)], capture_output=True)
        if done.returncode:
            (at / path).rmdir()
            (at / path).write_text("")
        else:
            at.held.callback(subprocess.run, ["umount", "-l", str(at / path)], capture_output=True)

    return step


def limit(size: int) -> Setup:
    """No file may become larger than `size` bytes."""
    return lambda at: setattr(at, "file_bytes", size)


def interrupt(after: str) -> Setup:
    return lambda at: setattr(at, "interrupt", after)


def busy(port: int) -> Setup:
    """Another program listens at the port."""

    def step(at: At) -> None:
        from socket import create_server

        at.held.enter_context(create_server(("127.0.0.1", port)))

    return step


def occupied(path: str) -> Setup:
    """Another process runs in the folder."""

    def step(at: At) -> None:
        from filelock import FileLock

        at.held.enter_context(FileLock(at / path / ".ptmq-run", timeout=0))

    return step


def huge_png(width: int, height: int) -> bytes:
    """A small file that unfolds to width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def thin_png(length: int) -> bytes:
    return huge_png(1, length)
