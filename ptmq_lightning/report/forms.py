"""A table over runs, written: for a terminal, as Markdown, CSV and JSON, and turned with widths across."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ptmq_lightning.report.tables import FLOAT, Line, text_of
from ptmq_lightning.runtime.files import csv_text

WIDTH = 100  # columns of a terminal
LONGEST = 28  # signs of a setting in a terminal
TITLES = {
    "top1": "top-1 %", "top5": "top-5 %", "drop": "drop", "agreement": "agree %", "sqnr_db": "SQNR dB",
    "logit_error": "logit error", "size_bytes": "bytes", "bit_ops": "bit ops", "seconds": "seconds",
}  # fmt: skip


def plain(lines: Sequence[Line], by: Sequence[str], values: Sequence[str]) -> str:
    """For a terminal: at most 100 columns, a setting named in the first of its lines alone, an empty line behind each
    setting. Figures that do not fit are left out from the right, the runs and the seconds last."""
    kept = list(values)
    while len(text := _plain(lines, by, kept)) and max(map(len, text)) > WIDTH and len(kept) > 1:
        kept.remove(([value for value in kept if value != "seconds"] or kept)[-1])
    return "\n".join(text) + "\n"


def _plain(lines: Sequence[Line], by: Sequence[str], values: Sequence[str]) -> list[str]:
    rows = [[*by, "width", *(TITLES.get(value, value) for value in values), "runs"]]
    before: tuple[str, ...] | None = None
    short = [_shortened([line.settings[column] for line in lines]) for column in range(len(by))]
    for line in lines:
        names = (
            [known[name] for known, name in zip(short, line.settings, strict=True)]
            if line.settings != before
            else [""] * len(by)
        )
        rows += [[]] if by and before is not None and line.settings != before else []
        rows.append([*names, line.config, *(text_of(line.cells[value], value) for value in values), _runs(line)])
        before = line.settings
    widths = [max(len(row[column]) for row in rows if row) for column in range(len(rows[0]))]
    left = len(by) + 1
    return [
        "  ".join(
            c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        if row
        else ""
        for row in rows
    ]


def markdown(lines: Sequence[Line], by: Sequence[str], values: Sequence[str]) -> str:
    """A line per setting and bit-width, "mean ± sample standard deviation" a cell, the runs last."""
    header = [*by, "config", *values, "runs"]
    text = [f"| {' | '.join(header)} |", f"|{' --- |' * (len(by) + 1)}{' ---: |' * (len(values) + 1)}"]
    for line in lines:
        cells = [text_of(line.cells[value], value) for value in values]
        text.append(f"| {' | '.join([*map(_cell, line.settings), line.config, *cells, _runs(line)])} |")
    return "\n".join(text) + "\n"


def pivot(lines: Sequence[Line], by: Sequence[str], value: str) -> str:
    """Markdown of one figure: a line per setting, a column per bit-width, narrow to wide as they come."""
    configs = list(dict.fromkeys(line.config for line in lines if line.config != FLOAT))
    there = {(line.settings, line.config): line.cells[value] for line in lines}
    text = [f"| {' | '.join([*by, *configs])} |", f"|{' --- |' * len(by)}{' ---: |' * len(configs)}"]
    for line in lines:
        if line.config == FLOAT and line.cells[value] is not None:
            names = [*map(_cell, line.settings)] if any(line.settings) else [FLOAT, *[""] * (len(by) - 1)][: len(by)]
            text.append(f"| {' | '.join([*names, *[text_of(line.cells[value], value)] * len(configs)])} |")
    for settings in dict.fromkeys(line.settings for line in lines if line.config != FLOAT):
        cells = [text_of(there.get((settings, config)), value) for config in configs]
        text.append(f"| {' | '.join([*map(_cell, settings), *cells])} |")
    return "\n".join(text) + "\n"


def comma(lines: Sequence[Line], by: Sequence[str], values: Sequence[str]) -> str:
    """CSV: the same lines, mean and standard deviation in columns of their own at full precision."""
    header = [*by, "config", *(f"{value}_{part}" for value in values for part in ("mean", "std")), "runs"]
    rows = []
    for line in lines:
        cells = [line.cells[value] for value in values]
        numbers = [number for cell in cells for number in ((cell.mean, cell.spread) if cell else (None, None))]
        rows.append([*line.settings, line.config, *numbers, line.runs])
    return csv_text(header, rows)


def as_json(lines: Sequence[Line], by: Sequence[str], values: Sequence[str], **extra: Any) -> str:
    """JSON: {"by", "rows": [{"settings", "config", figure: {mean, std, runs}}]} and what ``extra`` adds."""
    rows = [
        {
            "settings": dict(zip(by, line.settings, strict=True)),
            "config": line.config,
            **{
                value: {"mean": cell.mean, "std": cell.spread, "runs": cell.runs}
                if (cell := line.cells[value])
                else None
                for value in values
            },
        }
        for line in lines
    ]
    return json.dumps({"by": list(by), "rows": rows, **extra}, indent=1, allow_nan=False) + "\n"


def _runs(line: Line) -> str:
    return "" if line.config == FLOAT else str(line.runs)


def _shortened(names: Sequence[str]) -> dict[str, str]:
    """Each name as a terminal shows it: of a long one the beginning, or the end where beginnings are the same (paths),
    or all of it where both are."""
    cuts: tuple[Callable[[str], str], ...] = (lambda n: f"{n[: LONGEST - 1]}…", lambda n: f"…{n[1 - LONGEST :]}")
    for cut in cuts:
        found = {name: name if len(name) <= LONGEST else cut(name) for name in names}
        if len(set(found.values())) == len(found):
            return found
    return {name: name for name in names}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
