"""`ptmq allocate DIR`: widths per layer for a budget or an accuracy, stored in the artifact under names."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ptmq_lightning.allocate.figures import draw_front, write_sensitivity
from ptmq_lightning.allocate.front import COSTS, Point, lines, monotone, texts
from ptmq_lightning.allocate.keys import AllocateKeys
from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.names import store_assignments
from ptmq_lightning.device.allocate_arguments import SENSITIVITY
from ptmq_lightning.device.allocation import Allocation
from ptmq_lightning.device.export_cli import check_sizes, open_folder, read_images
from ptmq_lightning.device.passes import compute
from ptmq_lightning.device.pictures import spread
from ptmq_lightning.evaluation.cost import bit_ops, layer_macs, size_bytes
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.files import replacing_file, write_atomically
from ptmq_lightning.runtime.memory import keep_freed_memory
from ptmq_lightning.runtime.spec import BitAssignment


def run(args: argparse.Namespace) -> Iterator[str]:
    """The command, line by line. Raises PTMQError."""
    if args.out is not None:
        require("allocate", "matplotlib")
    keep_freed_memory()
    model = artifact.load(args.folder)
    parts = [read_images(path, model.info.preprocessing, args.count) for path in args.images]
    check_sizes(args.images, parts, model.info.input_size)
    images = torch.cat(parts)[: args.count]
    classes = compute(model, images[:1]).shape[1]
    allocation = Allocation(model, images, _keys(args), labels=labels_of(args.images, args.count, classes))
    if args.prices is not None:
        sums = ", ".join(f"{pair} {total:,.10g}" for pair, total in allocation.uniform_sums().items())
        yield f"the layers' {args.price or 'prices'} in {args.prices}: {sums or 'no pair has one in every layer'}"
    started = time.perf_counter()
    layers = len(allocation.sensitivity)
    yield f"sensitivity of {layers} layers at {len(allocation.pairs)} pairs: {time.perf_counter() - started:.1f} s"
    started = time.perf_counter()
    found = [("size_bytes", *made) for made in allocation.assignments()] if _asked(args) else []
    found += allocation.front() if args.front else []
    yield f"{len(found)} assignments: {time.perf_counter() - started:.1f} s"
    started = time.perf_counter()
    points = _points(allocation, found)
    if args.front:
        kept = {
            p.config for cost in COSTS for p in monotone([p for p in points if p.family in ("uniform", cost)], cost)
        }
        if dear := [name for _, name, _ in found if name not in kept]:
            yield f"left out, as they answer no better than a cheaper one: {' '.join(dear)}"
        points = [point for point in points if point.family == "uniform" or point.config in kept]
        found = [made for made in found if made[1] in kept]
    measured = "" if allocation.labels is not None else ", no labels"
    yield f"answers of {len(images)} images{measured}: {time.perf_counter() - started:.1f} s"
    yield from lines(points)
    if args.out is not None:
        _write(args.out, allocation, points)
        yield f"{args.out}: {', '.join(sorted(file.name for file in args.out.iterdir()))}"
    named = {name: assignment for _, name, assignment in found}
    store_assignments(args.folder, named)
    yield f"stored in {args.folder}: {' '.join(named)}"


def _asked(args: argparse.Namespace) -> bool:
    """Whether budgets or an accuracy are given, beside or instead of the front."""
    return any((args.avg_w, args.size_mb, args.bit_ops, args.price_limit, args.max_drop is not None))


def _keys(args: argparse.Namespace) -> AllocateKeys:
    """What the command line asks for. Raises ConfigError."""
    if not _asked(args) and not args.front:
        raise ConfigError(
            "nothing is asked for; expected --size-mb, --avg-w, --bit-ops, --price-limit, --max-drop or --front"
        )
    if (args.prices is None) != (not args.price_limit) or (args.price and not args.prices):
        raise ConfigError("--prices and --price-limit belong together; expected both: a file, and its prices' sum")
    return AllocateKeys(
        name=args.search,
        averages=args.avg_w,
        size_mb=args.size_mb,
        bit_ops=args.bit_ops,
        prices=None if args.prices is None else str(args.prices),
        price=args.price,
        price_limits=args.price_limit,
        max_drop=args.max_drop,
        activations=args.activations,
        sensitivity=args.sensitivity or AllocateKeys.sensitivity,
        sensitivity_images=SENSITIVITY,
        swap_seconds=args.swap_seconds,
        swap_images=args.count,
    )


def labels_of(paths: Sequence[Path], count: int, classes: int) -> Tensor | None:
    """The labels (N,) of the images that `read_images` reads: the numbers of their class folders in the order of their
    names. None where some place has not as many class folders as the network has classes."""
    labels: list[int] = []
    for path in paths:
        if path.suffix == ".npy" or (path.is_file() and path.suffix != ".tar"):
            return None
        reader = open_folder(path)
        folders = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
        if len(folders) != classes:
            return None
        labels += [int(reader[index][1]) for index in spread(len(reader), count)]
    return torch.tensor(labels[:count])


def _points(allocation: Allocation, found: Sequence[tuple[str, str, BitAssignment]]) -> list[Point]:
    """The uniform pairs, narrow to wide, then the named assignments."""
    model = allocation.model
    macs = layer_macs(model, allocation.images[:1])

    def point(name: str, assignment: BitAssignment, family: str) -> Point:
        answers = allocation.judge.ask(assignment)
        return Point(
            name,
            family,
            *assignment.average(model),
            size_bytes(model, assignment),
            bit_ops(macs, assignment, model.layers),
            answers.agreement,
            answers.top1,
            answers.divergence,
        )

    uniform = [point(str(pair), model.resolve(pair), "uniform") for pair in sorted(model.pairs)]
    return uniform + [point(name, assignment, family) for family, name, assignment in found]


def _write(out: Path, allocation: Allocation, points: Sequence[Point]) -> None:
    whole = allocation.judge.top1
    for name, text in texts(points, whole, len(allocation.images)).items():
        write_atomically(out / name, text)
    write_sensitivity(out, allocation.sensitivity)
    with replacing_file(out / "front.png") as part:
        draw_front(part, points, whole)
