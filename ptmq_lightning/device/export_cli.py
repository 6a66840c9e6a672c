"""`ptmq export DIR`: an artifact for ONNX Runtime or OpenVINO, with the report of its check."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmq_lightning.artifact import artifact
from ptmq_lightning.device.passes import compute
from ptmq_lightning.device.pictures import open_picture, spread
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.folder import read_manifest
from ptmq_lightning.export.one_file import opening_line
from ptmq_lightning.export.parity import WidthReport
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.runtime.errors import ConfigError, ExportError
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.model import Which
from ptmq_lightning.runtime.preprocessing import Preprocessing


def run(args: argparse.Namespace) -> Iterator[str]:
    """The command, its report line by line. Raises PTMQError, also where the export does not pass its check."""
    model = artifact.load(args.folder)
    parts = [read_images(path, model.info.preprocessing, args.count) for path in args.images]
    check_sizes(args.images, parts, model.info.input_size)
    images = torch.cat(parts)[: args.count]
    compute(model, images[:1])
    place = args.folder.resolve()
    out = args.out or place.with_name(f"{place.name}-{args.backend}")
    bits = widths(args.bits)
    options = {name: getattr(args, name) for name in ("form", "backend", "weights", "float_image", "device")}
    yield from report_lines(out, write_export(model, out, images, bits, packed=not args.unpacked, **options))


def report_lines(out: Path, reports: Mapping[str, WidthReport]) -> Iterator[str]:
    """What was written, where it runs exactly, and the check of each width."""
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    manifest = read_manifest(out)
    yield f"{out}: {size:,} bytes"
    yield f"x86 processors: {manifest['old_processors']}"
    if "opening" in manifest:
        yield opening_line(manifest)
    yield from lines(reports)
    yield from target_of(manifest["backend"], manifest["form"]).notes(out)


def widths(text: str | None) -> list[Which] | None:
    """Of "4,w4a8,mixed_4.0"; None: all."""
    return [int(name) if name.isdigit() else name for name in text.split(",")] if text else None


def lines(reports: Mapping[str, WidthReport]) -> list[str]:
    """The check in words, a line per width."""
    result = []
    for name, report in reports.items():
        kernels = ", ".join(f"{count} {kernel}" for kernel, count in report.float_kernels.items()) or "none"
        step = report.largest_step
        alone = "was not checked" if step is None else f"differs by at most {step:.2f} steps"
        result.append(
            f"{name}: top-1 as simulated on {report.agreement:.1f} % of {report.images} images, logit error "
            f"{report.logit_error:.4f}, a layer by itself {alone}; convolutions and products in float: {kernels}"
        )
    return result


def read_images(path: Path, preprocessing: Preprocessing | None, count: int) -> Tensor:
    """Images of a file or folder.

    Args:
        path: a picture, a folder or tar of pictures, or a .npy file of preprocessed images (N, C, H, W).
        preprocessing: the network's own; None where it is unknown: only the .npy file can be read then.
        count: how many images at most; of a folder or tar, spread evenly over it.

    Returns:
        float32 (N, C, H, W).

    Raises:
        ConfigError: a path that is none of these, or pictures without a preprocessing.  DataError: a damaged picture.
    """
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.atleast_1d(np.load(path, allow_pickle=False))[:count].astype(np.float32))
    except (OSError, ValueError, EOFError) as error:
        raise _no_images(path, type(error).__name__) from error
    if not path.exists() or preprocessing is None:
        raise _no_images(path, "the artifact has no preprocessing" if path.exists() else "not found")
    if path.is_file() and path.suffix != ".tar":
        return open_picture(path, preprocessing).unsqueeze(0)
    reader = open_folder(path)
    picks = spread(len(reader), count)
    return torch.stack([open_picture(reader[i][0], preprocessing, f"{path}: {reader.filename(i)}") for i in picks])


def open_folder(path: Path) -> Any:
    """timm's reader of a folder or tar of pictures. Raises ConfigError where it holds none."""
    require("train", "timm")  # it reads folders and tars; single pictures need Pillow alone
    from timm.data import create_dataset

    try:
        return create_dataset("", root=str(path)).reader
    except Exception as error:  # timm's readers raise RuntimeError for an empty folder, else what the place leads to
        why = "no pictures in it" if isinstance(error, RuntimeError) else type(error).__name__
        raise _no_images(path, why) from error


def check_sizes(paths: Sequence[Path], parts: Sequence[Tensor], size: Sequence[int] | None) -> None:
    """size: (C, H, W) of the network's images; None: unknown, then that of the first ones."""
    expected = tuple(size or parts[0].shape[1:])
    for path, images in zip(paths, parts, strict=True):
        if images.dim() != 4 or images.shape[1:] != expected:
            sizes = ", ".join(map(str, expected)) if len(expected) == 3 else "C, H, W"
            raise ExportError(
                f"found images of shape {tuple(images.shape)} in '{path}'; expected (N, {sizes}), as the network takes "
                f"them. Prepare them so."
            )


def _no_images(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"cannot read images of '{path}' ({why}); expected a folder, tar or file of pictures, or a .npy file of "
        f"preprocessed images (N, C, H, W)."
    )
