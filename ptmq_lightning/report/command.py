"""The command that compares finished runs.

python -m ptmq_lightning.report outputs/sweep/digits_resnet/SWEEP
python -m ptmq_lightning.report DIR DIR --by mixer --pivot top1
python -m ptmq_lightning.report DIR --by mixer,recon.iters --values top1,size_bytes --plot figure.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ptmq_lightning.report import forms, style
from ptmq_lightning.report.answer import SHORT, by_itself
from ptmq_lightning.report.figures import compare
from ptmq_lightning.report.runs import collect, require_keys
from ptmq_lightning.report.tables import whole
from ptmq_lightning.runtime.errors import ConfigError, PTMQError, of_system
from ptmq_lightning.runtime.files import write_atomically

FORMS: dict[str, Callable[..., str]] = {
    "text": forms.plain,
    "md": forms.markdown,
    "csv": forms.comma,
    "json": forms.as_json,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare finished runs: a table of mean and standard deviation over the runs of each setting."""
    options = parser().parse_args(arguments)
    try:
        text = _report(options)
    except PTMQError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except OSError as error:
        print(f"error: {of_system(error)}", file=sys.stderr)
        return 1
    print(text, end="")
    if options.plot:
        print(f"figure  {options.plot}", file=sys.stderr)
    return 0


def _report(options: argparse.Namespace) -> str:
    records = collect(options.folders)
    require_keys(records, options.over)
    by = by_itself(records, options.over) if options.by is None else options.by
    values = [options.pivot] if options.pivot else options.values
    lines = whole(records, by=by, values=values, rows=options.rows, over=options.over)
    if options.plot:
        kind = options.plot.suffix.lstrip(".")
        if kind not in ("png", "svg"):
            raise ConfigError(f"--plot {options.plot} has no known ending; expected a name that ends in .png or .svg")
        write_atomically(options.plot, style.on_white(compare(lines, by, values), kind))
    if options.pivot:
        return forms.pivot(lines, by, options.pivot)
    return FORMS[options.form](lines, by, values)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = argparse.ArgumentParser(prog="python -m ptmq_lightning.report", description=main.__doc__)
    found.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="runs, sweeps, or folders that hold them")
    by = "config keys that tell the runs apart: mixer,recon.iters (default: found by themselves)"
    found.add_argument("--by", type=_names, default=None, help=by)
    found.add_argument("--over", type=_names, default=["seed"], help="keys to average over (default: seed)")
    found.add_argument("--rows", type=_names, default=None, help="bit-widths to show: w3a3,w4a4 (default: all)")
    values = f"figures of results.json, drop or seconds (default: {','.join(SHORT)})"
    found.add_argument("--values", type=_names, default=list(SHORT), help=values)
    found.add_argument("--form", choices=tuple(FORMS), default="text")
    found.add_argument("--pivot", metavar="FIGURE", help="one figure as Markdown, widths across")
    found.add_argument("--plot", metavar="FILE", type=Path, help="draw the figures over the widths (.png or .svg)")
    return found
