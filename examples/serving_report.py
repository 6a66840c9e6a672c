"""What examples/serving.py measured, in lines and as a figure.

python examples/serving_report.py serving.json      # both again, from the file
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

WINDOW = 100  # requests in the running top-1

Record = Mapping[str, Any]


def report(record: Record) -> Iterator[str]:
    """The ladder, what it means on this machine, and a line per phase."""
    full, *widths = record["rungs"]
    for rung in record["rungs"]:
        kept = f"agreement {rung['agreement']:6.2f} %, top-1 {rung['top1']:.2f} %"
        yield f"{rung['name']:>6}  {rung['ms']:7.2f} ms  {rung['bytes']:>11,} bytes  {kept}"
    fastest, slowest = (pick(rung["ms"] for rung in widths) for pick in (min, max))
    chooses = "between float and integers" if fastest < 0.9 * full["ms"] else "nothing, the integers are no faster here"
    yield (
        f"Widths take {fastest:.2f} to {slowest:.2f} ms, float {full['ms']:.2f} ms: the deadline chooses {chooses}; "
        f"memory chooses the width, for no x86 CPU runs fewer bits faster than 8."
    )
    for phase, mine in by_phase(record):
        used = ", ".join(f"{name} {count}" for name, count in Counter(row["rung"] for row in mine).most_common())
        in_time = statistics.mean(row["ms"] <= phase["deadline_ms"] for row in mine)
        yield (
            f"{phase['name']:>15}: deadline {phase['deadline_ms']:.2f} ms, memory {phase['memory_bytes']:,.0f} bytes: "
            f"{used}; median {statistics.median(row['ms'] for row in mine):.2f} ms, {100 * in_time:.0f} % in time, "
            f"top-1 {100 * statistics.mean(row['correct'] for row in mine):.1f} %"
        )
    late = sum(row["ms"] > phase["deadline_ms"] for phase, mine in by_phase(record) for row in mine)
    load = "load {load} on {cores} cores".format_map(record["machine"])
    yield f"{late} of {len(record['trace']['ms'])} answers were late; the machine had {load}."


def by_phase(record: Record) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
    """Each phase with the rows of its requests."""
    trace = record["trace"]
    rows = [dict(zip(trace, values, strict=True)) for values in zip(*trace.values(), strict=True)]
    for phase in record["phases"]:
        yield phase, [row for row in rows if row["phase"] == phase["name"]]


def picture(record: Record, file: Path) -> None:
    """Latency against the deadline, the chosen rung against the memory limit, and the running top-1."""
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
    names = [rung["name"] for rung in record["rungs"]]
    used = [name for name in names if name in set(record["trace"]["rung"])]
    shade = colormaps["viridis_r"]
    colors = {name: "0.5" if name == "float" else shade(0.15 + 0.8 * names.index(name) / len(names)) for name in used}
    _latency(record, axes[0], colors)
    _choice(record, axes[1], colors)
    _accuracy(record, axes[2])
    edges = _edges(record)
    for left, right, phase in zip(edges, edges[1:], record["phases"], strict=False):
        axes[0].text((left + right) / 2, 1.02, phase["name"], ha="center", va="bottom", fontsize=9,
                     transform=axes[0].get_xaxis_transform())  # fmt: skip
        for ax in axes:
            ax.axvline(left, color="0.85", linewidth=0.8, zorder=0)
    for ax in axes:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.03), frameon=False, fontsize=9)
    axes[2].set(xlabel="request", xlim=(0, edges[-1]))
    load = "load {load} on {cores} cores".format_map(record["machine"])
    figure.suptitle(f"{record['network']}: requests of one image, one thread, {load}", fontsize=11)
    figure.align_ylabels()
    figure.savefig(file, dpi=150)


def _edges(record: Record) -> list[int]:
    return [0, *accumulate(phase["requests"] for phase in record["phases"])]


def _latency(record: Record, ax: Any, colors: Mapping[str, Any]) -> None:
    trace = record["trace"]
    deadlines = [phase["deadline_ms"] for phase in record["phases"]]
    ax.stairs(deadlines, _edges(record), baseline=None, color="crimson", linewidth=2, label="deadline")
    for name, color in colors.items():
        found = [(i, ms) for i, (rung, ms) in enumerate(zip(trace["rung"], trace["ms"], strict=True)) if rung == name]
        ax.scatter(*zip(*found, strict=True), s=9, color=color, label=f"answered by {name}")
    ax.set(yscale="log", ylabel="latency, ms")
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()


def _choice(record: Record, ax: Any, colors: Mapping[str, Any]) -> None:
    """Rungs from small to large; what the memory limit shuts out is shaded."""
    rungs = sorted(record["rungs"], key=lambda rung: rung["bytes"])
    rows = {rung["name"]: row for row, rung in enumerate(rungs)}
    for name, color in colors.items():
        taken = [i for i, rung in enumerate(record["trace"]["rung"]) if rung == name]
        ax.scatter(taken, [rows[name]] * len(taken), s=45, marker="|", linewidth=2, color=color)
    held = [sum(rung["bytes"] <= phase["memory_bytes"] for rung in rungs) - 0.5 for phase in record["phases"]]
    ax.stairs(held, _edges(record), baseline=len(rungs) - 0.5, fill=True, color="crimson", alpha=0.15,
              label="does not fit\nin memory")  # fmt: skip
    ax.set_yticks(list(rows.values()), [f"{rung['name']}  {rung['bytes'] / 1000:.0f} kB" for rung in rungs])
    ax.set(ylabel="chosen, weights packed", ylim=(-0.5, len(rungs) - 0.5))


def _accuracy(record: Record, ax: Any) -> None:
    correct, rungs = record["trace"]["correct"], {rung["name"]: rung["top1"] for rung in record["rungs"]}
    ends = range(min(WINDOW, len(correct)), len(correct) + 1)

    def running(values: Sequence[float]) -> list[float]:
        return [statistics.mean(values[max(0, end - WINDOW) : end]) for end in ends]

    expected = running([rungs[name] for name in record["trace"]["rung"]])
    error = [math.sqrt(top1 * (100 - top1) / WINDOW) for top1 in expected]
    low, high = ([e + sign * d for e, d in zip(expected, error, strict=True)] for sign in (-1, 1))
    ax.plot(ends, running([100.0 * right for right in correct]), color="black", label=f"last {WINDOW} requests")
    ax.plot(ends, expected, color="0.5", linestyle=":", label="by the artifact's\ntable, ± standard\nerror")
    ax.fill_between(ends, low, high, color="0.9", zorder=0)
    ax.set(ylabel="top-1, %", ylim=(min(80, ax.get_ylim()[0]), 100))


if __name__ == "__main__":
    for given in map(Path, sys.argv[1:]):
        measured = json.loads(given.read_text())
        print(*report(measured), sep="\n")
        picture(measured, given.with_suffix(".png"))
