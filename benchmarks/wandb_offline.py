"""What W&B's offline files hold: the records that `wandb sync` would send."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER, PIECE, BLOCK = 7, 7, 32768  # bytes
WHOLE, LAST = 1, 4  # kinds of a piece


@dataclass
class OfflineRun:
    """One start of a run."""

    id: str = ""
    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, set[str]] = field(default_factory=dict)
    ended: bool = False


def read_offline(folder: Path, patience: float = 20.0) -> list[OfflineRun]:
    """Every start below a folder, in order of time. W&B's service writes a file's last part behind the run's end."""
    files = sorted(folder.rglob("offline-run-*/*.wandb"), key=lambda file: file.parent.name)
    deadline = time.monotonic() + patience
    while not all(_read(file).ended for file in files) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [_read(file) for file in files]


def _read(path: Path) -> OfflineRun:
    from wandb.proto import wandb_internal_pb2

    run = OfflineRun()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        _take(run, record, record.WhichOneof("record_type"))
    for name, value in run.summary.items():
        if value == "table-file":
            name = name.removesuffix("/_type")
            run.tables[name] = json.loads((path.parent / "files" / run.summary[f"{name}/path"]).read_text())
    return run


def _records(content: bytes) -> Iterator[bytes]:
    """LevelDB's log behind a header of W&B's: pieces (checksum, length, kind) in blocks of 32 KiB."""
    assert content[:4] == b":W&B"
    place, pieces = HEADER, b""
    while place + PIECE <= len(content):
        if BLOCK - place % BLOCK < PIECE:  # padding: no piece fits there
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if kind == 0:
            return
        pieces += content[place + PIECE : place + PIECE + length]
        place += PIECE + length
        if kind in (WHOLE, LAST):
            yield pieces
            pieces = b""


def _take(run: OfflineRun, record: Any, kind: str) -> None:
    if kind == "run":
        of = record.run
        run.id, run.name, run.group, run.job_type = of.run_id, of.display_name, of.run_group, of.job_type
        run.tags = tuple(of.tags)
        run.config |= {item.key: json.loads(item.value_json) for item in of.config.update}
    elif kind == "history":
        run.history.append(_values(record.history.item))
    elif kind == "summary":
        run.summary |= _values(record.summary.update)
    elif kind == "metric":
        run.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "exit":
        run.ended = True
    elif kind == "artifact":
        contents = {entry.path for entry in record.artifact.manifest.contents}
        run.artifacts.setdefault(record.artifact.type, set()).update(contents)


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
