"""Tables over runs: mean and spread of each figure, per bit-width and per setting.

python -m ptmq_lightning.report.tables outputs/mixer/* --by mixer --rows w3a3,w4a4
"""

from __future__ import annotations

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ptmq_lightning.report.record import read_results
from ptmq_lightning.runtime.errors import ConfigError, PTMQError

VALUES = ("top1", "agreement", "logit_error")
DIGITS = {"top1": 2, "top5": 2, "agreement": 2, "sqnr_db": 2, "logit_error": 4, "size_bytes": 0, "bit_ops": 0}


INCOMPLETE = ("unfinished", "complete")  # folders in a run's own, between its start and its end


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation (None for a single run) of one figure over ``runs`` runs."""

    mean: float
    spread: float | None
    runs: int


@dataclass(frozen=True)
class Line:
    """One line of a table: the settings' values, the bit-width's name, a cell per figure."""

    settings: tuple[str, ...]
    config: str
    cells: dict[str, Cell | None]


def collect(folders: Iterable[Path | str]) -> list[dict[str, Any]]:
    """Every row of every results.json under ``folders``: a flat record each, with its run's keys and config."""
    records = []
    for folder in folders:
        files = sorted(f for f in Path(folder).rglob("results.json") if f.parent.name not in INCOMPLETE)
        if not files:
            raise ConfigError(f"no results.json under {folder}; give run folders, or folders that hold them")
        for file in files:
            results = read_results(file)
            config = file.with_name("config.yaml")
            settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.exists() else {}
            run = {key: results[key] for key in ("model", "data", "method", "seed")}
            records += [{"run": str(file.parent), "settings": settings, **run, **row} for row in results["rows"]]
    return records


def setting(record: Mapping[str, Any], key: str) -> str:
    """A run's value of a dotted config key; a group that is a mapping stands for its ``name``."""
    value: Any = record["settings"]
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            if key in record:
                return str(record[key])
            raise ConfigError(f"{key} is not in {record['run']}/config.yaml; give a dotted key of it with --by")
        value = value[part]
    return str(value["name"] if isinstance(value, Mapping) and "name" in value else value)


def summarize(
    records: Sequence[Mapping[str, Any]],
    *,
    by: Sequence[str],
    values: Sequence[str] = VALUES,
    rows: Sequence[str] | None = None,
) -> list[Line]:
    """Group the records by settings and bit-width, in order of appearance; ``rows`` keeps only those bit-widths."""
    groups: dict[tuple[tuple[str, ...], str], list[Mapping[str, Any]]] = {}
    for record in records:
        if rows is None or record["config"] in rows:
            key = (tuple(setting(record, name) for name in by), record["config"])
            groups.setdefault(key, []).append(record)
    if not groups:
        found = ", ".join(dict.fromkeys(str(record["config"]) for record in records)) or "none"
        raise ConfigError(f"no rows {', '.join(rows or [])} in these runs; they hold {found}")
    for members in groups.values():
        _forbid_mixing(members, by)
    return [
        Line(settings, config, {value: _mean(members, value) for value in values})
        for (settings, config), members in groups.items()
    ]


def _forbid_mixing(members: Sequence[Mapping[str, Any]], by: Sequence[str]) -> None:
    """A mean over different networks or images says nothing."""
    for key in ("model", "data"):
        found = sorted({str(member[key]) for member in members})
        if len(found) > 1 and key not in by:
            raise ConfigError(
                f"these runs differ in {key} ({', '.join(found)}); add {key} to --by or give fewer folders"
            )


def _mean(members: Sequence[Mapping[str, Any]], value: str) -> Cell | None:
    if value not in members[0]:
        raise ConfigError(f"{value} is not a figure of results.json; expected one of {', '.join(DIGITS)}")
    numbers = [float(member[value]) for member in members if member[value] is not None]
    if not numbers:
        return None
    return Cell(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, len(numbers))


def table(
    records: Sequence[Mapping[str, Any]],
    by: Sequence[str],
    values: Sequence[str] = VALUES,
    rows: Sequence[str] | None = None,
) -> str:
    """Markdown: a line per setting and bit-width, "mean ± sample standard deviation" a cell, the runs last."""
    header = [*by, "config", *values, "runs"]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * (len(by) + 1)}{' ---: |' * (len(values) + 1)}"]
    for line in summarize(records, by=by, values=values, rows=rows):
        cells = [_text(line.cells[value], value) for value in values]
        lines.append(f"| {' | '.join([*line.settings, line.config, *cells, str(_runs(line))])} |")
    return "\n".join(lines) + "\n"


def csv_table(
    records: Sequence[Mapping[str, Any]],
    by: Sequence[str],
    values: Sequence[str] = VALUES,
    rows: Sequence[str] | None = None,
) -> str:
    """CSV: the same lines, mean and standard deviation in columns of their own at full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*by, "config", *(f"{value}_{part}" for value in values for part in ("mean", "std")), "runs"])
    for line in summarize(records, by=by, values=values, rows=rows):
        cells = [line.cells[value] for value in values]
        numbers = [number for cell in cells for number in ((cell.mean, cell.spread) if cell else (None, None))]
        writer.writerow([*line.settings, line.config, *numbers, _runs(line)])
    return text.getvalue()


def _runs(line: Line) -> int:
    return max((cell.runs for cell in line.cells.values() if cell), default=0)


def _text(cell: Cell | None, value: str) -> str:
    if cell is None:
        return "-"
    digits = DIGITS.get(value, 3)
    spread = "" if cell.spread is None else f" ± {cell.spread:.{digits}f}"
    return f"{cell.mean:.{digits}f}{spread}"


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table over run folders."""
    parser = argparse.ArgumentParser(prog="python -m ptmq_lightning.report.tables", description=main.__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders that hold them")
    parser.add_argument("--by", type=_names, default=[], help="config keys that tell the runs apart: mixer,rounding")
    parser.add_argument("--rows", type=_names, default=None, help="bit-widths to show: w3a3,w4a4 (default: all)")
    parser.add_argument("--values", type=_names, default=list(VALUES), help=f"figures (default: {','.join(VALUES)})")
    parser.add_argument("--csv", action="store_true", help="CSV instead of Markdown")
    options = parser.parse_args(arguments)
    make = csv_table if options.csv else table
    try:
        text = make(collect(options.folders), options.by, options.values, options.rows)
    except PTMQError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
