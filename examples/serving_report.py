"""What examples/serving.py measured, in lines and as a figure (which needs matplotlib: pip install ".[figures]").

python examples/serving_report.py serving.json      # both again, from the file
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

WINDOW = 100  # requests in the running top-1

Record = Mapping[str, Any]


def report(record: Record) -> Iterator[str]:
    """The ladder, what it means on this machine, and a line per phase."""
    full, *widths = record["rungs"]
    for rung in record["rungs"]:
        yield f"{rung['name']:>6}  {rung['ms']:7.2f} ms  {rung['bytes']:>11,} bytes  agreement {rung['agreement']:6.2f} %"
    times = [rung["ms"] for rung in widths]
    yield (
        f"Widths take {min(times):.2f} to {max(times):.2f} ms, float {full['ms']:.2f} ms: the deadline chooses between "
        f"float and integers, memory chooses the width; no x86 CPU runs fewer bits faster than 8."
    )
    for phase, mine in by_phase(record):
        used = ", ".join(f"{name} {count}" for name, count in Counter(row["rung"] for row in mine).most_common())
        in_time = statistics.mean(row["ms"] <= phase["deadline_ms"] for row in mine)
        yield (
            f"{phase['name']:>15}: deadline {phase['deadline_ms']:.2f} ms, memory {phase['memory_bytes']:,.0f} bytes: "
            f"{used}; median {statistics.median(row['ms'] for row in mine):.2f} ms, {100 * in_time:.0f} % in time, "
            f"top-1 {100 * statistics.mean(row['correct'] for row in mine):.1f} %"
        )


def by_phase(record: Record) -> Iterator[tuple[Mapping[str, Any], list[dict[str, Any]]]]:
    """Each phase with the rows of its requests."""
    trace = record["trace"]
    rows = [dict(zip(trace, values, strict=True)) for values in zip(*trace.values(), strict=True)]
    for phase in record["phases"]:
        yield phase, [row for row in rows if row["phase"] == phase["name"]]


def picture(record: Record, file: Path) -> None:
    """Latency against the deadline, the chosen rung's bytes against the memory limit, and the running top-1."""
    try:
        import matplotlib
    except ImportError:
        print("no figure: pip install matplotlib", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(9, 7.5), sharex=True, layout="constrained", height_ratios=(3, 3, 2))
    _latency(record, axes[0], pyplot.get_cmap("viridis_r"))
    _memory(record, axes[1], pyplot.get_cmap("viridis_r"))
    _accuracy(record, axes[2])
    start = 0
    for phase in record["phases"]:
        for ax in axes:
            ax.axvline(start, color="0.85", linewidth=0.8, zorder=0)
        axes[0].text(start + phase["requests"] / 2, 1.02, phase["name"], ha="center", va="bottom", fontsize=9,
                     transform=axes[0].get_xaxis_transform())  # fmt: skip
        start += phase["requests"]
    axes[2].set(xlabel="request", xlim=(0, start))
    figure.align_ylabels()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def _colours(record: Record, colours: Any) -> dict[str, Any]:
    """Of the rungs that were used: float grey, widths from light (narrow) to dark."""
    names = [rung["name"] for rung in record["rungs"]]
    used = [name for name in names if name in set(record["trace"]["rung"])]
    return {name: "0.5" if name == "float" else colours(0.2 + 0.7 * names.index(name) / len(names)) for name in used}


def _limit(record: Record, ax: Any, key: str, scale: float, label: str) -> None:
    """A phase's limit as a step line."""
    ends = [0]
    for phase in record["phases"]:
        ends.append(ends[-1] + phase["requests"])
    ax.stairs([phase[key] * scale for phase in record["phases"]], ends, baseline=None, color="crimson", linewidth=2,
              label=label)  # fmt: skip


def _latency(record: Record, ax: Any, colours: Any) -> None:
    trace = record["trace"]
    for name, colour in _colours(record, colours).items():
        found = [(i, ms) for i, (rung, ms) in enumerate(zip(trace["rung"], trace["ms"], strict=True)) if rung == name]
        ax.scatter(*zip(*found, strict=True), s=9, color=colour, label=f"answered by {name}")
    _limit(record, ax, "deadline_ms", 1, "deadline")
    ax.set(yscale="log", ylabel="latency, ms")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _memory(record: Record, ax: Any, colours: Any) -> None:
    size = {rung["name"]: rung["bytes"] / 1000 for rung in record["rungs"]}
    used = _colours(record, colours)
    ax.step(range(len(record["trace"]["rung"])), [size[name] for name in record["trace"]["rung"]], where="post",
            color="0.3", linewidth=1.2, label="chosen")  # fmt: skip
    for rung in record["rungs"]:
        ax.axhline(size[rung["name"]], color=used.get(rung["name"], "0.9"), linewidth=0.8, zorder=0)
    _limit(record, ax, "memory_bytes", 1e-3, "memory limit")
    ax.set(yscale="log", ylabel="weights packed, kB")
    ax.set_yticks(list(size.values()), [f"{name}  {kB:.0f}" for name, kB in size.items()], fontsize=8)
    ax.minorticks_off()
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _accuracy(record: Record, ax: Any) -> None:
    correct = record["trace"]["correct"]
    ends = range(min(WINDOW, len(correct)), len(correct) + 1)
    ax.plot(ends, [100 * statistics.mean(correct[max(0, end - WINDOW) : end]) for end in ends], color="0.2",
            label=f"of the last {WINDOW}\nrequests")  # fmt: skip
    ax.axhline(record["float_top1"], color="0.5", linestyle=":", label="float, whole\ntest set")
    ax.set(ylabel="top-1, %")
    ax.set_ylim(min(80, ax.get_ylim()[0]), 100)
    ax.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


if __name__ == "__main__":
    for given in map(Path, sys.argv[1:]):
        measured = json.loads(given.read_text())
        print(*report(measured), sep="\n")
        picture(measured, given.with_suffix(".png"))
