"""Finished runs as flat records, and what tells one from another."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ptmq_lightning.report.record import read_results
from ptmq_lightning.report.sweeps import FINISHED, sweep_of
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.keys import flat

Record = Mapping[str, Any]
INCOMPLETE = ("unfinished", "complete")  # folders in a run's own, between its start and its end
IDLE = ("resume", "logger", "export", "artifact", "trainer.threads", "trainer.cache", "data.workers")  # no result's
FIRST = ("model", "data", "method")  # groups that bring keys of others
ONCE = ("start", "build")  # stages that the first run of a process or of a folder pays for the others
SHOWN = 4  # keys in a message


def collect(folders: Iterable[Path | str]) -> list[dict[str, Any]]:
    """Every row of every results.json under ``folders``: a flat record each.

    A record holds the row, the run's folder, model, data, method and seed, ``float`` (the float network's row),
    ``drop`` (points of top-1 below it), ``seconds`` (of the run without imports and the making of the float network),
    ``settings`` (config.yaml) and ``chosen`` (what the command of its sweep says for the swept keys).

    Raises:
        ConfigError: a folder without results, or a file that cannot be read.
    """
    records = []
    for folder in folders:
        files = sorted(f for f in Path(folder).rglob("results.json") if f.parent.name not in INCOMPLETE)
        if not files:
            raise ConfigError(f"no results.json under {folder}; give run folders, or folders that hold them")
        records += [record for file in files for record in _records(file)]
    return records


def _records(file: Path) -> Iterator[dict[str, Any]]:
    results = read_results(file)
    run = {key: results[key] for key in ("model", "data", "method", "seed")}
    config, fp, sweep = file.with_name("config.yaml"), results["fp"], sweep_of(file.parent)
    job = next((job for job in sweep.jobs if sweep.root / job.folder == file.parent), None) if sweep else None
    if job and job.state not in FINISHED:
        return  # what lies there is of an earlier start
    run |= {"run": str(file.parent), "chosen": job.chosen(sweep.swept) if sweep and job else {}, "float": fp}
    run["settings"] = _settings(config) if config.exists() else {}
    run["seconds"] = sum(seconds for stage, seconds in results["seconds"].items() if stage not in ONCE)
    for row in results["rows"]:
        yield {**run, **row, "drop": fp["top1"] - row["top1"]}


def _settings(config: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        why = f"found {type(found).__name__}"
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        why = str(error).splitlines()[0]
    raise ConfigError(f"{config} cannot be read ({why}); expected the keys that a run writes; repeat the run")


def require_keys(records: Sequence[Record], over: Sequence[str]) -> None:
    """Refuse keys to average over that no run has: a slip of the pen would change nothing. Raises ConfigError."""
    for key in over:
        if not any(_has(record, key) for record in records):
            raise ConfigError(f"{key} is no key of these runs; give dotted keys of their config.yaml with --over")


def _has(record: Record, key: str) -> bool:
    known = (*record.get("chosen", {}), *record, *(name for name, _ in flat(record["settings"])))
    return any(name == key or name.startswith(f"{key}.") for name in known)


def setting(record: Record, key: str) -> str:
    """A run's value of a swept key or of a dotted config key; a group that is a mapping stands for its ``name``."""
    if key in record.get("chosen", {}):
        return str(record["chosen"][key])
    value: Any = record["settings"]
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            if key in record:
                return str(record[key])
            known = {*record["settings"], *(name for name, _ in flat(record["settings"]))}
            near = difflib.get_close_matches(key, sorted(known))
            hint = f" (nearest: {', '.join(near)})" if near else ""
            raise ConfigError(f"{key} is not in {record['run']}/config.yaml{hint}; give a dotted key of it with --by")
        value = value[part]
    return str(value["name"] if isinstance(value, Mapping) and "name" in value else value)


def apart(records: Sequence[Record], over: Sequence[str] = ("seed",)) -> list[str]:
    """The fewest keys that tell these runs apart in all but ``over``, groups before their keys."""
    found: list[str] = []
    while mixed := [key for part in _parts(records, found) for key in differing(part, over)]:
        names = [key.removesuffix(".name") for key in dict.fromkeys(mixed)]
        groups = [name for name in names if f"{name}.name" in mixed]
        found.append(next((name for name in (*FIRST, *groups) if name in names), names[0]))
    return found


def differing(records: Sequence[Record], over: Sequence[str] = ("seed",)) -> list[str]:
    """The dotted keys of config.yaml in which these runs differ, but for ``over`` and what changes no result."""
    settings_of = [
        dict(flat(record["settings"])) for record in {record.get("run"): record for record in records}.values()
    ]
    keys = list(dict.fromkeys(key for settings in settings_of for key in settings))
    idle = (*IDLE, *over)
    return [
        key
        for key in keys
        if not any(key == name or key.startswith(f"{name}.") for name in idle)
        and len({str(settings.get(key)) for settings in settings_of}) > 1
    ]


def require_alike(members: Sequence[Record], by: Sequence[str], over: Sequence[str] = ("seed",)) -> None:
    """Refuse a mean over different networks, images or settings, which says nothing.

    Args:
        members: the runs of one line of a table.
        by: the keys that tell its lines apart.
        over: the keys that are averaged over on purpose.

    Raises:
        ConfigError: it names what differs.
    """
    for key in ("model", "data"):
        found = sorted({str(member[key]) for member in members})
        if len(found) > 1 and key not in (*by, *over):
            raise ConfigError(
                f"these runs differ in {key} ({', '.join(found)}); add {key} to --by or give fewer folders"
            )
    if keys := differing(members, over):
        settings_of = [dict(flat(member["settings"])) for member in members]
        told = [f"{key} ({', '.join(dict.fromkeys(str(of.get(key)) for of in settings_of))})" for key in keys[:SHOWN]]
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        wanted = ",".join([*by, *apart(members, over)])
        raise ConfigError(
            f"a mean over these runs would mix settings: they differ in {', '.join(told)}{more}; tell them apart with "
            f"--by {wanted}, give fewer folders, or say what to average over: --over {','.join([*over, *keys[:1]])}"
        )


def _parts(records: Sequence[Record], by: Sequence[str]) -> list[list[Record]]:
    parts: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        parts.setdefault(tuple(setting(record, key) for key in by), []).append(record)
    return list(parts.values())
