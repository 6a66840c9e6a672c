"""report.html: one run on one page that loads nothing from elsewhere."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ptmq_lightning.report.tables import DIGITS
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.info import figure

FIGURES = {
    "top1": "top-1, %",
    "top5": "top-5, %",
    "agreement": "agreement with float, %",
    "logit_error": "relative logit error",
    "sqnr_db": "SQNR, dB",
    "size_bytes": "weights at their width, bytes",
    "bit_ops": "bit operations per image",
}
NOTED = (
    "preprocessing: ",
    "not quantized: ",
    "the checkpoint does not say how its images",
    "cannot be exported to ONNX",
)
LAST = 0.25  # share of a block's logged steps that its final loss is the mean of
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th { font-weight: 600; white-space: normal; vertical-align: bottom } td:first-child, th:first-child { text-align: left }
svg { max-width: 100%; height: auto } pre { background: #f5f5f5; padding: 1rem; overflow-x: auto }
"""


def write_page(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write report.html of a run.

    Args:
        folder: the run's, with metrics.csv, layers.csv, config.yaml and train.log as far as they are there.
        results: what results.json is going to hold.
    """
    folder, rows, fp = Path(folder), results["rows"], results["fp"]
    metrics, layers = _read(folder / "metrics.csv"), _read(folder / "layers.csv")
    title = f"{results['model']} on {results['data']}, {results['method']}, seed {results['seed']}"
    figures = [name for name in FIGURES if any(row[name] is not None for row in rows)]
    table = [["float", *(_text(name, fp.get(name)) for name in figures)]]
    table += [[row["config"], *(_text(name, row[name]) for name in figures)] for row in rows]
    seconds = ", ".join(f"{stage} {_duration(value)}" for stage, value in results["seconds"].items())
    parts = [
        f"<p>One model, {len(rows)} widths. {results['calibration_images']} images to calibrate, "
        f"{results['evaluation_images']} to evaluate. Time to {escape(seconds)}; "
        f"{results['peak_memory_bytes'] / 2**20:.0f} MiB at the peak.</p>",
        _accuracy(rows, fp),
        _table(["width", *(FIGURES[name] for name in figures)], table),
    ]
    if losses := final_losses(metrics):
        parts += ["<h2>Loss of each block at the end of its fit, per width</h2>", _losses(losses)]
    if notes := list(_notes(folder / "train.log")):
        parts += ["<h2>From the log</h2>", "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"]
    if layers:
        parts += ["<h2>Layers</h2>", _folded("table", _table(list(layers[0]), [list(row.values()) for row in layers]))]
    if (config := folder / "config.yaml").exists():
        parts += ["<h2>Configuration</h2>", _folded("config.yaml", f"<pre>{escape(config.read_text('utf-8'))}</pre>")]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    page = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<p>{escape(versions)}</p>\n</html>\n"
    )
    return write_atomically(folder / "report.html", page)


def _notes(log: Path) -> Iterator[str]:
    """What a log says about how images are prepared and about layers that stay in float, without the times."""
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():  # "DATE TIME MESSAGE"
        if (note := " ".join(line.split(" ")[2:])).startswith(NOTED):
            yield note


def final_losses(metrics: Iterable[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Width -> block -> mean loss over the last steps that were logged, blocks in the order of their fits."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in metrics:
        for key, value in line.items():
            if key.startswith("loss/w") and value and line.get("block_name"):
                found.setdefault(key.removeprefix("loss/"), {}).setdefault(line["block_name"], []).append(float(value))
    return {
        width: {block: statistics.fmean(losses[-max(1, round(LAST * len(losses))) :]) for block, losses in ends.items()}
        for width, ends in sorted(found.items())
    }


def _accuracy(rows: Sequence[Mapping[str, Any]], fp: Mapping[str, Any]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axis = figure.add_subplot(xlabel="width", ylabel="%")
    names = [row["config"] for row in rows]
    for value, label in (("top1", "top-1"), ("agreement", "agreement with float")):
        axis.plot(names, [row[value] for row in rows], marker="o", label=label)
    axis.axhline(fp["top1"], color="gray", linestyle=":", label="float, top-1")
    axis.legend(fontsize=8)
    return _svg(figure)


def _losses(losses: Mapping[str, Mapping[str, float]]) -> str:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(block for ends in losses.values() for block in ends))
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axis = figure.add_subplot(ylabel="loss", yscale="log")
    for number, (width, ends) in enumerate(losses.items()):
        color = colormaps["viridis_r"](0.1 + 0.9 * number / len(losses))
        axis.plot([blocks.index(b) for b in ends], list(ends.values()), marker=".", color=color, label=width)
    axis.set_xticks(range(len(blocks)), blocks, rotation=60, ha="right", fontsize=7)
    axis.legend(fontsize=8)
    return _svg(figure)


def _svg(figure: Any) -> str:
    """The figure as an element of the page, the same bytes for the same values."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ptmq", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>\n"

    return f'<div class="wide"><table>\n{line("th", header)}{"".join(line("td", row) for row in rows)}</table></div>'


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _text(name: str, value: float | None) -> str:
    return figure(value, DIGITS[name], missing="")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") if file.exists() else io.StringIO() as lines:
        return list(csv.DictReader(lines))
