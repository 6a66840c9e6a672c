"""`ptmq export DIR`: an artifact for ONNX Runtime or OpenVINO, with the report of its check."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmq_lightning.runtime import artifact
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.export import BACKENDS, FORMS, export
from ptmq_lightning.runtime.parity import WidthReport

IMAGES = 64


def arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind DIR."""
    images = "real images for ranges and the check: folders, tars, or preprocessed ones as .npy"
    parser.add_argument("--images", metavar="PATH", type=Path, required=True, nargs="+", help=images)
    parser.add_argument("--bits", metavar="LIST", help="widths and named assignments, e.g. w8a8,w4a8 (default: all)")
    parser.add_argument("--form", choices=FORMS, default="static", help="a file per width, or one graph for all")
    parser.add_argument("--backend", choices=BACKENDS, default="onnx")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder to write (default: DIR beside it, -BACKEND)")
    parser.add_argument("--count", type=int, default=IMAGES, help=f"images to use, at most (default {IMAGES})")
    parser.add_argument("--float-image", action="store_true", help="leave the first convolution in float")


def run(args: argparse.Namespace) -> Iterator[str]:
    """The command, its report line by line. Raises PTMQError, also where the export does not pass its check."""
    model = artifact.load(args.folder)
    images = torch.cat([read_images(path, model.preprocessing(), args.count) for path in args.images])[: args.count]
    out = args.out or args.folder.with_name(f"{args.folder.resolve().name}-{args.backend}")
    bits = args.bits.split(",") if args.bits else None
    reports = export(model, out, images, bits, form=args.form, backend=args.backend, float_image=args.float_image)
    yield f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.1f} MB"
    yield from lines(reports)


def lines(reports: Mapping[str, WidthReport]) -> list[str]:
    """The check in words, a line per width."""
    result = []
    for name, report in reports.items():
        kernels = ", ".join(f"{count} {kernel}" for kernel, count in report.float_kernels.items()) or "none"
        result.append(
            f"{name}: top-1 as simulated on {report.agreement:.1f} % of {report.images} images, logit error "
            f"{report.logit_error:.4f}, a layer by itself differs by at most {report.largest_step:.2f} steps; "
            f"convolutions and products in float: {kernels}"
        )
    return result


def read_images(path: Path, preprocessing: Mapping[str, Any], count: int) -> Tensor:
    """Up to `count` images (N, C, H, W), spread over a folder or tar of pictures, or an array of preprocessed ones."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False)[:count].astype(np.float32))
    if not path.exists() or not preprocessing:
        raise ConfigError(
            f"cannot read images of '{path}': {'the artifact has no preprocessing' if path.exists() else 'not found'}; "
            f"expected a folder or tar of pictures, or a .npy file of preprocessed images (N, C, H, W)."
        )
    from timm.data import create_dataset, create_transform

    known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in preprocessing.items()}
    dataset: Any = create_dataset("", root=str(path), transform=create_transform(**known))
    picks = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return torch.stack([dataset[int(i)][0] for i in picks])
