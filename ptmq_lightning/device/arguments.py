"""The arguments behind DIR of each subcommand of `ptmq`. Without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ptmq_lightning.export.folder import WEIGHTS
from ptmq_lightning.export.targets import backends, devices, forms

EXPORT_IMAGES = 64
MOST_PORT = 65535


def of_export(parser: argparse.ArgumentParser) -> None:
    """Of `ptmq export`."""
    images = "real images for ranges and the check: pictures, folders or tars of them, or preprocessed ones as .npy"
    parser.add_argument("--images", metavar="PATH", type=Path, required=True, nargs="+", help=images)
    parser.add_argument("--bits", metavar="LIST", help="4, w4a8 or named assignments, by comma (default: all)")
    form = "static: a file per width; multi: one file whose input chooses the width; switchable: weights are inputs"
    parser.add_argument("--form", choices=forms(), default="static", help=form)
    parser.add_argument("--backend", choices=backends(), default="onnx")
    parser.add_argument("--device", choices=devices(), help="of --backend ethosu: the processor to compile for")
    exact = "signed: the fastest; portable: exact on every processor without any setting"
    parser.add_argument("--weights", choices=WEIGHTS, default="signed", help=exact)
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder to write (default: DIR beside it, -BACKEND)")
    parser.add_argument(
        "--count", type=positive, default=EXPORT_IMAGES, help=f"images to use, at most (default {EXPORT_IMAGES})"
    )
    unpacked = "a byte for each weight, for programs that do not unpack fewer bits once when they open the file"
    parser.add_argument("--unpacked", action="store_true", help=unpacked)
    parser.add_argument("--float-image", action="store_true", help="leave the first convolution in float")
    parser.add_argument("--targets", action=_Targets, nargs=0, help="what each backend takes: operations and widths")


class _Targets(argparse.Action):
    """As --help: prints and leaves, whatever else is missing."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from ptmq_lightning.export.support import text

        print(text())
        parser.exit()


def positive(text: str) -> int:
    """The type of a command line's argument that counts."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from 1")
    return int(text)


def port(text: str) -> int:
    """The type of a number of a port."""
    if not text.isdigit() or int(text) > MOST_PORT:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from 0 to {MOST_PORT}")
    return int(text)


def _which(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def of_info(parser: argparse.ArgumentParser) -> None:
    """Of `ptmq info`."""
    parser.add_argument("--layers", action="store_true", help="a row for each layer")


def of_predict(parser: argparse.ArgumentParser) -> None:
    """Of `ptmq predict`."""
    parser.add_argument(
        "images", metavar="IMAGE", type=Path, nargs="+", help="pictures, or folders with pictures at any depth"
    )
    parser.add_argument("--bits", type=_which, help="4, w4a8 or a named assignment (default: as loaded)")
    parser.add_argument("--top", type=positive, default=5, help="classes to print (5)")
    parser.add_argument("--json", action="store_true", help="a JSON object for each picture, a line each")


def of_bench(parser: argparse.ArgumentParser) -> None:
    """Of `ptmq bench`."""
    for name, default in (("batch", 1), ("threads", 1), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=positive, default=default, help=f"({default})")
    exports = "an export of it (ptmq export), timed in the same rounds; may be given again"
    parser.add_argument("--export", metavar="EXPORT_DIR", type=Path, action="append", default=[], help=exports)


def of_demo(parser: argparse.ArgumentParser) -> None:
    """Of `ptmq demo`."""
    parser.add_argument("--images", metavar="PATH", type=Path, nargs="+", default=[], help="pictures to pick from")
    parser.add_argument("--out", metavar="OUT", type=Path, help="folder to write (default: DIR beside it, -demo)")
    runtime = "dist folder of the npm package onnxruntime-web (default: node_modules/onnxruntime-web/dist)"
    parser.add_argument("--runtime", metavar="PATH", type=Path, help=runtime)
    parser.add_argument("--port", type=port, default=8765, help="on this machine alone; 0 takes any (8765)")
    parser.add_argument("--no-serve", action="store_true", help="write the folder and end")


def of_push(parser: argparse.ArgumentParser) -> None:
    """Of `ptmq push`."""
    parser.add_argument("repo", metavar="OWNER/NAME", help="a repository, made where it is missing")
    parser.add_argument("--private", action="store_true", help="a new one is seen by its owner alone")


def of_pull(parser: argparse.ArgumentParser) -> None:
    """Of `ptmq pull`."""
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository")
    parser.add_argument("--revision", help="a branch, tag or commit (default: the latest)")


def none(parser: argparse.ArgumentParser) -> None:
    """Of a subcommand that takes DIR alone."""
