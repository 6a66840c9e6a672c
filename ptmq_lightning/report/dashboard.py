"""The W&B dashboard that compares runs: a workspace and a report, made by a command.

python -m ptmq_lightning.report.dashboard --entity TEAM --project ptmq --group SWEEP
python -m ptmq_lightning.report.dashboard --entity TEAM --project ptmq --spec dashboard.json   (sends nothing)

Runs are grouped by the keys that --by names (mixer without it) and averaged over the seeds. What is drawn is what
wandb_run.py logs. Needs the extra "dashboard" (wandb-workspaces); to save, W&B's key as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptmq_lightning.report import style
from ptmq_lightning.report.wandb_run import BLOCK_ITER, ITER
from ptmq_lightning.runtime.errors import ConfigError, PTMQError
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.spec import BitWidth

WIDTHS = ("w2a4", "w3a3", "w4a4", "w5a5", "w6a6", "w7a7", "w8a8")


def panels(widths: Sequence[str]) -> dict[str, list[Any]]:
    """The panels of each section."""
    import wandb_workspaces.reports.v2 as wr

    weights = sorted({_bits(width)[0] for width in widths})
    inputs = sorted({_bits(width)[1] for width in widths})
    return {
        "What it costs": [
            _bars("points of top-1 below float", "drop", widths),
            _bars("top-1, %", "top1", ["float", *widths]),
            _bars("agreement with float, %", "agreement", widths),
            _bars("relative logit error", "logit_error", widths),
            *(
                wr.ScatterPlot(title=f"accuracy against bytes, {width}", x=f"size_bytes/{width}", y=f"top1/{width}")
                for width in (widths[0], widths[-1])
            ),
            wr.BarPlot(title="seconds", metrics=["seconds/reconstruct", "seconds/whole"]),
            wr.BarPlot(title="memory at the peak, bytes", metrics=["memory/peak_bytes"]),
        ],
        "Fits": [
            wr.LinePlot(title="loss of each width", x=ITER, y=[f"loss/{width}" for width in widths], log_y=True),
            wr.LinePlot(title="settled share of the rounding", x=ITER, y=["fit/settled"]),
            wr.LinePlot(title="rounding loss", x=ITER, y=["fit/rounding"]),
            wr.LinePlot(title="beta", x=ITER, y=["fit/beta"]),
        ],
        "Each block": [
            wr.LinePlot(
                title=f"loss of each block at {width}", x=BLOCK_ITER, metric_regex=f"losses_.*/{width}", log_y=True
            )
            for width in widths
        ],
        "Step sizes, learned over calibrated": [
            wr.LinePlot(title="of activations", x="block", y=[f"step_sizes/a{number}" for number in inputs]),
            wr.LinePlot(title="of weights", x="block", y=[f"step_sizes/w{number}" for number in weights]),
        ],
        "Runs": [wr.WeavePanelSummaryTable(table_name="widths")],
    }


def _bars(title: str, figure: str, widths: Sequence[str]) -> Any:
    """A bar for each width, in the width's color."""
    import wandb_workspaces.reports.v2 as wr

    names = [f"{figure}/{width}" for width in widths]
    colors = {name: _color(width) for name, width in zip(names, widths, strict=True)}
    return wr.BarPlot(title=title, metrics=[*names], line_colors=colors)


def _color(width: str) -> str:
    from matplotlib.colors import to_hex

    return style.METHODS["rtn"] if width == "float" else to_hex(style.color_of_width(_bits(width)[0]))


def _bits(width: str) -> tuple[int, int]:
    pair = BitWidth.parse(width)
    return pair.w, pair.a


def workspace(entity: str, project: str, *, group: str | None, by: Sequence[str], widths: Sequence[str]) -> Any:
    """The comparison workspace, not saved yet."""
    import wandb_workspaces.workspaces as ws

    settings = ws.RunsetSettings(
        filters=ws.And(ws.Metric("Group") == group) if group else [],
        groupby=[ws.Config(f"{key}.name") if "." not in key else ws.Config(key) for key in by],
    )
    sections = [ws.Section(name=name, panels=found, is_open=True) for name, found in panels(widths).items()]
    title = f"ptmq: {group or 'all runs'}"
    return ws.Workspace(entity=entity, project=project, name=title, sections=sections, runset_settings=settings)


def comparison(entity: str, project: str, *, group: str | None, by: Sequence[str], widths: Sequence[str]) -> Any:
    """The same panels as a report, with a sentence on each section."""
    import wandb_workspaces.reports.v2 as wr

    filters = f"Metric('Group') == '{group}'" if group else ""
    blocks: list[Any] = [wr.P("One model for every bit-width; runs with the same setting are averaged over seeds.")]
    for name, found in panels(widths).items():
        keys = [f"config.{key}.name" if "." not in key else f"config.{key}" for key in by]
        runs = wr.Runset(filters=filters, groupby=keys)  # of the report's own project
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=found)]
    return wr.Report(entity=entity, project=project, title=f"ptmq: {group or 'all runs'}", blocks=blocks)


def specification(saved: Sequence[Any]) -> dict[str, Any]:
    """What would be sent to W&B, as plain values."""
    parts = ("workspace", "report")
    return {
        part: json.loads(thing._to_model().model_dump_json(by_alias=True))
        for part, thing in zip(parts, saved, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the dashboard that compares runs in W&B."""
    options = parser().parse_args(arguments)
    try:
        for line in _make(options):
            print(line)
    except PTMQError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _make(options: argparse.Namespace) -> list[str]:
    require("dashboard", "wandb_workspaces")
    keys = {"group": options.group, "by": options.by, "widths": options.widths}
    made = [build(options.entity, options.project, **keys) for build in (workspace, comparison)]
    if options.spec is not None:
        write_atomically(options.spec, json.dumps(specification(made), indent=1) + "\n")
        return [f"{options.spec}: the workspace and the report; nothing was sent"]
    try:
        for thing in made:
            thing.save()
    except Exception as error:  # of W&B's client
        raise ConfigError(
            f"W&B took no dashboard ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); "
            "expected a key (wandb login) and a project that exists: log a run to it first"
        ) from error
    return [str(thing.url) for thing in made]


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    found = argparse.ArgumentParser(prog="python -m ptmq_lightning.report.dashboard", description=main.__doc__)
    found.add_argument("--entity", required=True, help="the user or team in W&B")
    found.add_argument("--project", default="ptmq", help="as logger.project of the runs (default: ptmq)")
    found.add_argument("--group", help="a sweep: the name of its root folder (default: all runs)")
    found.add_argument("--by", type=_names, default=["mixer"], help="groups of runs: mixer,recon.iters")
    found.add_argument("--widths", type=_names, default=list(WIDTHS), help="bit-widths that are drawn")
    found.add_argument("--spec", metavar="FILE", type=Path, help="write the specification there, send nothing")
    return found


if __name__ == "__main__":
    sys.exit(main())
