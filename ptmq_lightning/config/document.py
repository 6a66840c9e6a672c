"""What --help prints and docs/configuration.md holds, both made of the declarations and the files of conf/.

python -m ptmq_lightning.config.document        (writes docs/configuration.md of this source tree)
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptmq_lightning.config.declared import Declaration, default_of, keys_of
from ptmq_lightning.config.options import ANY_PAIR, groups, option
from ptmq_lightning.config.schema import Config
from ptmq_lightning.quant.insert import Override
from ptmq_lightning.runtime.keys import choices_of, range_of

PAGE = Path("docs") / "configuration.md"
WIDTH = 118
USAGE = "python train.py [GROUP=OPTION ...] [KEY=VALUE ...]"
EXAMPLES = """\
Examples:
  python train.py
  python train.py model=deit_s bits=mixed mixer=case3 data=imagenet data.root=DIR
  python train.py recon.iters=2000 seed=1
  python train.py method=qdrop bits=w4a8
  python train.py "bits.groups=[[w3a3,w4a4],[w8a8]]" "bits.extra=[w2a4]"
  python train.py -m mixer=none,case1,case2,case3 seed=0,1,2
  python train.py export=onnx artifact=DIR bits=w8a8,w4a8
  python train.py --cfg job                            (all keys of a run and their values, without running it)

The run's folder follows from the command: outputs/MODEL/mixer-case3_seed-1 (with an experiment outputs/EXPERIMENT/...,
in a sweep outputs/sweep/MODEL/...); set it by hydra.run.dir=DIR, a sweep's by hydra.sweep.dir=DIR. The same command
starts afresh and replaces what the earlier run left there; with resume=true it continues behind the last finished
block, or does nothing where the run is complete. A sweep (-m) does so by itself, resume=false begins it anew; it ends
in a table. -q says little, -v everything. A key that nothing in a run reads is refused. Experiments read images and
weights of the folder that the environment variable PTMQ_DATA names.
"""
PRECEDENCE = """\
A key has the value of the last of these that sets it: the default below, the option of its group, `bits` (which may
choose an option of `allocate`), `method` (of every group listed before it), `experiment`, `recon`, and the command
line. What an option of the command brings and an experiment replaces, the log says in a line. A key that nothing in
the run reads is refused on the command line.
"""


def help_text() -> str:
    """The answer to --help."""
    lines = [
        "PTMQ: one pretrained vision network -> one model that runs at every bit-width from 2 to 8.",
        "",
        f"  {USAGE}",
    ]
    lines += ["", "Groups and their options (files: conf/GROUP/OPTION.yaml), then their keys with defaults:"]
    for name, about in _groups():
        lines += ["", f"  {name:<12}{about}"]
        if known := _options(name):
            lines += textwrap.wrap(" ".join(known), WIDTH, initial_indent=" " * 14, subsequent_indent=" " * 14)
        for key, field, _ in _keys(name):
            text = f"{key}={_default(field)}  {_help(field)}"
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 10)
    lines += ["", "Without a group:"]
    lines += [f"      {key}={_default(field)}  {_help(field)}" for key, field, _ in _keys("")]
    return "\n".join([*lines, "", EXAMPLES])


def page() -> str:
    """docs/configuration.md."""
    lines = ["# Configuration", "", f"    {USAGE}", "", "Made by `python -m ptmq_lightning.config.document`.", ""]
    lines += [PRECEDENCE]
    for name, about in _groups():
        lines += [f"## `{name}`", "", f"{about[0].upper()}{about[1:]}.", ""]
        described = [(of, option(name, of)) for of in groups().get(name, [])]
        lines += [f"- `{name}={of}`{': ' + found.about if found and found.about else ''}" for of, found in described]
        lines += [f"- `{name}=w4a8`, {ANY_PAIR}: that pair alone"] if name == "bits" else []
        lines += [""] if described else []
        if rows := list(_keys(name)):
            lines += [*_table(rows), ""]
    lines += ["## Without a group", "", *_table(list(_keys(""))), "", "## Items of `placement.overrides`", ""]
    lines += _table([(key, field, kind) for key, (field, kind) in keys_of(Override).items()])
    return "\n".join(lines) + "\n"


def _groups() -> Iterator[tuple[str, str]]:
    """Name and help of every group, the experiments last."""
    for name, (field, kind) in keys_of(Config).items():
        if dataclasses.is_dataclass(kind):
            yield name, field.metadata["help"]
    yield "experiment", "a complete run, or a sweep of runs"


def _options(group: str) -> list[str]:
    return [*groups().get(group, []), *([f"and {ANY_PAIR}"] if group == "bits" else [])]


def _keys(group: str) -> Iterator[tuple[str, Declaration, Any]]:
    """Dotted name, declaration and type of a group's keys; "": of those without a group."""
    of = keys_of(Config)[group][1] if group in keys_of(Config) else Config if not group else None
    for name, (field, kind) in keys_of(of).items():
        if not dataclasses.is_dataclass(kind):
            yield f"{group}.{name}" if group else name, field, kind


def _table(rows: list[tuple[str, Declaration, Any]]) -> list[str]:
    lines = ["| key | type | default | |", "|---|---|---|---|"]
    for key, field, kind in rows:
        lines.append(
            f"| `{key}` | {_type(kind)} | {_cell(_default(field))} | {_help(field)} |".replace(" |  |", " | |")
        )
    return lines


def _cell(text: str) -> str:
    return f"`{text}`" if text else ""


def _help(field: Declaration) -> str:
    """Its help, with the choices or the range."""
    text, (least, most) = field.metadata["help"], range_of(field)
    if allowed := choices_of(field):
        return f"{text} ({', '.join(allowed)})"
    if math.isfinite(least) or math.isfinite(most):
        low, high = (str(end) if isinstance(end, int) else f"{end:g}" for end in (least, most))
        return f"{text} ({low} {'or more' if math.isinf(most) else f'to {high}'})"
    return str(text)


def _default(field: Declaration) -> str:
    """As one types it; empty where the option sets it."""
    default = default_of(field)
    return "" if default is dataclasses.MISSING or field.name == "name" else _typed(default)


def _typed(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_typed, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _type(kind: Any) -> str:
    """Such as "int or null", "list of list of str"."""
    if args := getattr(kind, "__args__", ()):
        if getattr(kind, "__origin__", None) in (tuple, list):
            return f"list of {_type(args[0])}"
        if type(None) in args or kind.__class__.__name__ == "UnionType":
            return " or ".join("null" if of is type(None) else _type(of) for of in args)
        return "mapping"
    return str(kind.__name__)


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
