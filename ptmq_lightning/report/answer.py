"""What a sweep, or any set of runs, says in the end: one table, its files, and which jobs failed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ptmq_lightning.report import forms, style
from ptmq_lightning.report.figures import compare
from ptmq_lightning.report.keys import OFFLINE
from ptmq_lightning.report.runs import Record, apart, collect
from ptmq_lightning.report.sweeps import FAILED, FINISHED, JOBS, THERE, Job, Sweep
from ptmq_lightning.report.tables import VALUES, Line, whole
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.files import write_atomically

SHORT = ("top1", "drop", "logit_error", "seconds")  # in a terminal
RESULTS, TABLE, FIGURE = "results.json", "table", "figure"  # .md, .csv, .json; .png, .svg


@dataclass(frozen=True)
class Answer:
    """by: the keys that tell the lines apart."""

    by: list[str]
    lines: list[Line]
    records: list[Record]


def answer(records: Sequence[Record], by: Sequence[str], over: Sequence[str] = ("seed",)) -> Answer:
    """Every figure of every setting and width, the float network first."""
    return Answer(list(by), whole(records, by=by, values=VALUES, over=over), list(records))


def of_sweep(sweep: Sweep) -> Answer | None:
    """The answer of a sweep as far as its jobs are finished; None where none is."""
    folders = [sweep.root / job.folder for job in sweep.jobs if job.state in FINISHED]
    folders = [folder for folder in folders if (folder / RESULTS).exists()]  # an export alone leaves none
    return answer(collect(folders), sweep.compared) if folders else None


def write_answer(folder: Path, found: Answer, jobs: Sequence[Job] = ()) -> list[Path]:
    """The table as Markdown, CSV and JSON, and its figure, in ``folder``."""
    notes = "".join(f"\n- {line}" for line in failures(jobs))
    noted = [{"number": job.number, "state": job.state, "folder": job.folder, "reason": job.reason} for job in jobs]
    parts = {
        f"{TABLE}.md": forms.markdown(found.lines, found.by, VALUES) + (f"{notes}\n" if notes else ""),
        f"{TABLE}.csv": forms.comma(found.lines, found.by, VALUES),
        f"{TABLE}.json": forms.as_json(found.lines, found.by, VALUES, jobs=noted),
    }
    drawn = compare(found.lines, found.by)
    parts_of_figure = {f"{FIGURE}.{kind}": style.on_white(drawn, kind) for kind in ("png", "svg")}
    return [write_atomically(folder / name, content) for name, content in (parts | parts_of_figure).items()]


def failures(jobs: Sequence[Job]) -> list[str]:
    """A line for each job that has no result: "#3 mixer=case3 seed=1 failed: ..."."""
    return [
        f"#{job.number} {' '.join(job.overrides)} {f'failed: {job.reason}' if job.state == FAILED else 'is unfinished'}"
        for job in jobs
        if job.state not in FINISHED
    ]


def told(sweep: Sweep, found: Answer | None) -> str:
    """What a terminal shows at the end of a sweep: the table, the jobs without a result, where things are."""
    lost = failures(sweep.jobs)
    there = sum(job.state == THERE for job in sweep.jobs)
    parts = [forms.plain(found.lines, found.by, SHORT)] if found else ["no run of this sweep has a result\n"]
    if there:
        parts.append(f"{there} of {len(sweep.jobs)} runs were there already; resume=false runs them again\n")
    if lost:
        listed = [textwrap.fill(line, forms.WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lost]
        parts.append("\n".join([f"{len(lost)} of {len(sweep.jobs)} runs have no result:", *listed, ""]))
        parts.append(f"the same command runs them again; the whole reasons: {sweep.root}/{JOBS}/*.log\n")
    if any(sweep.root.glob(f"*/{OFFLINE}")):
        parts.append(f"W&B runs that are kept offline are sent by: wandb sync {sweep.root}/*/{OFFLINE}\n")
    if found:
        parts.append(f"table and figure: {sweep.root}/{TABLE}.md, .csv, .json, {FIGURE}.png, .svg\n")
    return "\n".join(parts)


def by_itself(records: Sequence[Record], over: Sequence[str] = ("seed",)) -> list[str]:
    """The keys that tell runs apart: those that a common sweep varied, else the fewest of config.yaml."""
    swept = [tuple(record.get("chosen", {})) for record in records]
    common = [key for key in swept[0] if key not in over] if swept and len(set(swept)) == 1 else []
    if common:
        try:
            answer(records, common, over)
            return common
        except ConfigError:
            pass  # a key that is fixed in each of several sweeps differs between them
    return apart(records, over)
