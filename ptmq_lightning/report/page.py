"""report.html: one run on one page that loads nothing from elsewhere, what a user asks first at its top."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ptmq_lightning.report import html, run_figures
from ptmq_lightning.report.run_figures import final_losses
from ptmq_lightning.report.tables import DIGITS
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.info import figure

FIGURES = {
    "top1": "top-1, %",
    "top5": "top-5, %",
    "agreement": "agreement with float, %",
    "logit_error": "relative logit error",
    "sqnr_db": "SQNR, dB",
    "size_bytes": "bytes at this width",
    "bit_ops": "bit operations per image",
}
NOTED = (
    "preprocessing: ",
    "not quantized: ",
    "the checkpoint does not say how its images",
    "cannot be exported to ONNX",
)
CLASSES = 20  # that are named without unfolding
FLOAT_BYTES = 4
Values = Mapping[str, Any]


def write_page(folder: Path, results: Values) -> Path:
    """Write report.html of a run.

    Args:
        folder: the run's, with metrics.csv, layers.csv, details.json, config.yaml and train.log as far as they are
            there.
        results: what results.json is going to hold.
    """
    folder = Path(folder)
    details, layers = _details(folder / "details.json"), _read(folder / "layers.csv")
    title = f"{results['model']} on {results['data']}, {results['method']}, seed {results['seed']}"
    parts = [
        *_first(results, layers),
        *_widths(results, layers),
        *_layers(details, layers),
        *_fits(_read(folder / "metrics.csv")),
        *_values(details),
        *_changes(details),
        *_made(results, details),
        *_files(folder, layers),
    ]
    return write_atomically(folder / "report.html", html.page(title, parts))


def _first(results: Values, layers: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """One sentence, and the figures of the float network, the narrowest width and the narrowest that loses little."""
    rows, fp = results["rows"], results["fp"]
    yield html.paragraph(
        f"One model that runs at {len(rows)} widths. {results['calibration_images']} images without labels to "
        f"calibrate, {results['evaluation_images']} to evaluate.",
        quiet=True,
    )
    told = [(f"{fp['top1']:.2f} %", "top-1 of the float network")]
    good = [row for row in rows if fp["top1"] - row["top1"] <= 1]
    shown = [*good[:1], *(row for row in rows[:1] if not good or row is not good[0])]
    for row in shown:
        times = _smaller(row, layers)
        within = ", the first within a point of float" if good and row is good[0] else ""
        told.append((f"{row['top1'] - fp['top1']:+.2f}", f"points at {row['config']}{times}{within}"))
    seconds = sum(value for stage, value in results["seconds"].items() if stage not in ("start", "build"))
    told.append((_duration(seconds), f"and {results['peak_memory_bytes'] / 2**20:,.0f} MiB at the peak"))
    yield html.tiles(told)


def _widths(results: Values, layers: Sequence[Mapping[str, str]]) -> Iterator[str]:
    rows, fp, images = results["rows"], results["fp"], results["evaluation_images"]
    errors = [drop_error(row, images) for row in rows]
    yield html.heading("Accuracy at every width")
    yield html.side_by_side(
        [
            html.figure(run_figures.drop(rows, fp, errors), "Points of top-1 above or below the float network; the "
                        "standard error that the number of images leaves is at most as long as the thin lines."),
            html.figure(run_figures.against_bytes(rows, fp), "Top-1 against the bytes of a model that is shipped at "
                        "that one width."),
        ]
    )  # fmt: skip
    figures = [name for name in FIGURES if any(row[name] is not None for row in rows)]
    header = ["width", "drop", "± at most", *(FIGURES[name] for name in figures), "times smaller"]
    table = [["float", "", "", *(_text(name, fp.get(name)) for name in figures), ""]]
    for row, error in zip(rows, errors, strict=True):
        cells = [f"{fp['top1'] - row['top1']:.2f}", f"{error:.2f}", *(_text(name, row[name]) for name in figures)]
        table.append([row["config"], *cells, _smaller(row, layers, form="{:.1f}")])
    yield html.table(header, table)


def drop_error(row: Values, images: int) -> float:
    """The largest standard error that the drop can have, in points: only images whose class changes take part."""
    return 100 * math.sqrt(max(0.0, 1 - row["agreement"] / 100) / max(1, images))


def _smaller(row: Values, layers: Sequence[Mapping[str, str]], form: str = ", {:.1f} times smaller") -> str:
    """How many times the weights in float32 are as large as all bytes at a width; "" where the layers are unknown."""
    weights = sum(int(layer["weights"]) for layer in layers)
    return form.format(FLOAT_BYTES * weights / row["size_bytes"]) if weights else ""


def _layers(details: Values, layers: Sequence[Mapping[str, str]]) -> Iterator[str]:
    figures = []
    errors, measured = details.get("layer_errors", {}), [c for c in (layers or [{}])[0] if c.startswith("sensitivity_")]
    if errors:
        at, images = details["chosen"], details["layer_images"]
        caption = f"At {at}, on {images} images, with all layers before it quantized too; the worst first."
        figures.append(html.figure(run_figures.layers(errors[at]), caption))
        names, configs = list(errors[at]), list(errors)
        if len(names) <= 80:
            lines = [[errors[config][name] for config in configs] for name in names]
            figures.append(html.figure(run_figures.heat(names, configs, lines, "error"), "The same at every width."))
    if measured:
        names = [layer["name"] for layer in layers if any(layer[c] for c in measured)]
        lines = [[float(layer[c] or "nan") for c in measured] for layer in layers if layer["name"] in names]
        columns = [column.removeprefix("sensitivity_") for column in measured]
        figures.append(html.figure(run_figures.heat(names, columns, lines, "sensitivity"), "Harm to the network where "
                                   "one layer alone has that width."))  # fmt: skip
    if figures:
        yield html.heading("Error of each layer")
        yield html.side_by_side(figures)


def _fits(metrics: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if not final_losses(metrics):
        return
    yield html.heading("Losses of the fits")
    yield html.figure(run_figures.losses_at_end(metrics), "The mean loss of each block at the end of its fit.",
                      scrolls=True)  # fmt: skip
    over_time = html.figure(run_figures.losses_over_time(metrics), scrolls=True)
    yield html.folded("over the iterations of each block", over_time)


def _values(details: Values) -> Iterator[str]:
    if not details.get("histograms"):
        return
    yield html.heading("Values in the worst layers")
    yield html.paragraph("Weights and inputs of the float network; dashed: the levels that the bits leave.", quiet=True)
    for layer in details["histograms"]:
        shown = [(layer[side], side) for side in ("weight", "input") if layer[side]]
        name = layer["layer"][-24:]
        yield html.side_by_side(html.figure(run_figures.values(found, f"{side} of {name}")) for found, side in shown)


def _changes(details: Values) -> Iterator[str]:
    changes, names = details.get("changes", []), details.get("classes", [])
    if not changes:
        return
    configs = list(changes[0]["classes"])
    yield html.heading("Pictures whose class changes")
    yield html.paragraph(
        f"Of {details['tried']} evaluation images; colored: another class than the float network's, dotted: not the "
        "label.",
        quiet=True,
    )

    def cell(change: Values, config: str) -> html.Cell:
        index, fp, label = change["classes"][config], change["classes"]["float"], change["label"]
        kind = "other" if index != fp else "wrong" if label >= 0 and index != label else ""
        return html.Cell.of(_class(names, index), kind)

    rows = [
        [html.Cell.of(change["picture"], picture=True), _class(names, change["label"]),
         *(cell(change, config) for config in configs)]
        for change in changes
    ]  # fmt: skip
    yield html.table(["image", "label", *configs], rows)


def _made(results: Values, details: Values) -> Iterator[str]:
    yield html.heading("How it was made")
    rows = []
    for key in ("command", "date", "processor", "threads", "source"):
        if details.get(key) not in (None, ""):
            rows.append([key, str(details[key])])
    rows.append(["seconds", ", ".join(f"{stage} {_duration(value)}" for stage, value in results["seconds"].items())])
    if preprocessing := details.get("preprocessing"):
        rows.append(["images", ", ".join(f"{key} {value}" for key, value in preprocessing.items())])
    if classes := details.get("classes"):
        more = f", ... ({len(classes)})" if len(classes) > CLASSES else ""
        rows.append(["classes", ", ".join(classes[:CLASSES]) + more])
    rows.append(["versions", ", ".join(f"{name} {number}" for name, number in results["versions"].items())])
    yield html.table(["", ""], rows, left=True)
    yield html.heading("What to do next, in this folder")
    yield (
        "<pre>ptmq info model\nptmq predict model PICTURES --bits 4\nptmq bench model\n"
        "ptmq export model --images PICTURES --bits w8a8,w4a8</pre>"
    )


def _files(folder: Path, layers: Sequence[Mapping[str, str]]) -> Iterator[str]:
    if notes := list(_notes(folder / "train.log")):
        yield html.heading("From the log")
        yield "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"
    yield html.heading("Everything")
    if layers:
        yield html.folded("layers", html.table(list(layers[0]), [list(row.values()) for row in layers]))
    if (config := folder / "config.yaml").exists():
        yield html.folded("config.yaml", f"<pre>{escape(config.read_text('utf-8'))}</pre>")


def _notes(log: Path) -> Iterator[str]:
    """What a log says about how images are prepared and about layers that stay in float, without the times."""
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():  # "DATE TIME MESSAGE"
        if (note := " ".join(line.split(" ")[2:])).startswith(NOTED):
            yield note


def _class(names: Sequence[str], index: int) -> str:
    return "-" if index < 0 else names[index] if index < len(names) else str(index)


def _text(name: str, value: float | None) -> str:
    return figure(value, DIGITS[name], missing="")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _details(file: Path) -> Values:
    found: Values = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def _read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") if file.exists() else io.StringIO() as lines:
        return list(csv.DictReader(lines))
