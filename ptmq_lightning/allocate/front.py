"""The front: what every width and named assignment costs and how well it answers, as rows, a table and a filter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from ptmq_lightning.runtime.files import csv_text
from ptmq_lightning.runtime.info import figure

COSTS = ("size_bytes", "bit_ops")


@dataclass(frozen=True)
class Point:
    """An assignment's cost and answers.

    family: "uniform", one pair in all layers, or the cost that it was made for, of COSTS. agreement, top1: percent;
    top1 is None without labels. divergence: mean KL from float.
    """

    config: str
    family: str
    w_bits: float
    a_bits: float
    size_bytes: int
    bit_ops: int
    agreement: float
    top1: float | None
    divergence: float


def monotone(points: Sequence[Point], cost: str) -> list[Point]:
    """Cheap to dear, without those that diverge no less than a cheaper one: each that is left is worth its price.

    Args:
        cost: one of COSTS.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (getattr(p, cost), p.divergence)):
        if not kept or point.divergence < kept[-1].divergence:
            kept.append(point)
    return kept


def lines(points: Sequence[Point]) -> Iterator[str]:
    """The points as lines of text."""
    width = max(len(point.config) for point in points)
    head = f"{'w bits':>6}  {'a bits':>6}  {'bytes':>12}  {'G bit ops':>10}  {'agree':>6}  {'top1':>6}  {'KL':>8}"
    yield f"{'':<{width}}  {head}"
    for p in points:
        yield (
            f"{p.config:<{width}}  {p.w_bits:6.2f}  {p.a_bits:6.2f}  {p.size_bytes:12,}  {p.bit_ops / 1e9:10.3f}  "
            f"{p.agreement:6.2f}  {figure(p.top1):>6}  {p.divergence:8.5f}"
        )


def texts(points: Sequence[Point], whole: float | None, images: int) -> dict[str, str]:
    """The contents of front.json, front.csv and front.md, by file name.

    Args:
        whole: top-1 of the float network in percent; None without labels.
        images: how many the answers are counted on.
    """
    rows = [asdict(point) for point in points]
    record = {"images": images, "float_top1": whole, "points": rows}
    return {
        "front.json": json.dumps(record, indent=2) + "\n",
        "front.csv": csv_text(rows[0], (row.values() for row in rows)),
        "front.md": _markdown(points, whole, images),
    }


def _markdown(points: Sequence[Point], whole: float | None, images: int) -> str:
    head = "| assignment | weight bits | activation bits | bytes | G bit operations | agreement, % | top-1, % | KL |"
    found = [head, "| --- " + "| ---: " * 7 + "|"]
    found += [
        f"| {p.config} | {p.w_bits:.2f} | {p.a_bits:.2f} | {p.size_bytes:,} | {p.bit_ops / 1e9:.3f} "
        f"| {p.agreement:.2f} | {figure(p.top1)} | {p.divergence:.5f} |"
        for p in points
    ]
    told = "" if whole is None else f" Float: top-1 {whole:.2f} %."
    return (
        "\n".join([*found, "", f"On {images} images.{told} Agreement and KL are those with the float network."]) + "\n"
    )
