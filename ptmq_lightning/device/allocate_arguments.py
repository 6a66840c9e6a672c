"""The arguments behind DIR of `ptmq allocate`. Without torch."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ptmq_lightning.device.arguments import positive

COUNT = 256
SENSITIVITY = 64  # of them, evenly spread: layers are told apart by fewer images than assignments are judged by


def of_allocate(parser: argparse.ArgumentParser) -> None:
    """Of `ptmq allocate`."""
    images = "real images: pictures, folders or tars of them, or preprocessed ones as .npy; labels are not needed"
    parser.add_argument("--images", metavar="PATH", type=Path, required=True, nargs="+", help=images)
    asked = parser.add_argument_group(
        "what is asked for", "each value an assignment of its own; budgets of several kinds hold together"
    )
    for flag, metavar, text in (
        ("--avg-w", "BITS", "average weight bits, by comma: mixed_4.0"),
        ("--size-mb", "MB", "megabytes (1e6) of the model at the assignment: size_6mb"),
        ("--bit-ops", "G", "1e9 bit operations of an image: bit_ops_0.5g"),
        ("--price-limit", "SUM", "of the prices of --prices: cycles_20000"),
    ):
        asked.add_argument(flag, metavar=metavar, type=amounts, default=(), help=text)
    asked.add_argument("--prices", metavar="FILE", type=Path, help="CSV or JSON: layer,pair,cycles, of a compiler")
    asked.add_argument("--price", metavar="COLUMN", help="which of the prices in FILE, such as cycles")
    lost = "the smallest that loses at most so many points: of top-1 where the images lie in folders named by all of "
    lost += "the network's classes, else of agreement with float"
    asked.add_argument("--max-drop", metavar="POINTS", type=amount, help=lost)
    asked.add_argument("--front", action="store_true", help="every half bit from the narrowest width to the widest")
    how = parser.add_argument_group("how")
    how.add_argument("--search", default="milp", help="milp (exact, default), greedy, uniform or random")
    how.add_argument("--activations", choices=("tied", "free"), default="tied", help="free: any width beside any other")
    how.add_argument("--sensitivity", help="divergence (default) or fisher, which is faster")
    how.add_argument("--swap-seconds", metavar="S", type=amount, default=0.0, help="swaps of layers after it (0)")
    how.add_argument("--count", type=positive, default=COUNT, help=f"images to use, at most (default {COUNT})")
    how.add_argument("--out", metavar="FOLDER", type=Path, help="for tables and figures: front.*, sensitivity.*")


def amounts(text: str) -> tuple[float, ...]:
    """The type of a list of positive numbers."""
    return tuple(amount(part) for part in text.split(","))


def amount(text: str) -> float:
    """The type of a number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number from 0")
    return value
