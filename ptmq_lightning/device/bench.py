"""How long a pass and a switch take, and what is held in memory: medians of rounds in which all cases take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ptmq_lightning.export.session import Session
from ptmq_lightning.runtime.cache import WeightCache
from ptmq_lightning.runtime.model import MultiBitModel

EAGER = "PyTorch"
Name = TypeVar("Name")


def interleaved(
    cases: Mapping[Name, Callable[[], Any]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[Name, float]:
    """Median milliseconds of each case; every round runs every case once, so that all meet the same machine.

    A case may return the seconds that count; otherwise the whole call counts.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()  # warm-up
    for _ in range(rounds):
        for name, case in cases.items():
            start = clock()
            own = case()
            seconds[name].append(own if isinstance(own, float) else clock() - start)
    return {name: 1000 * statistics.median(found) for name, found in seconds.items()}


def names_of(model: MultiBitModel) -> list[str]:
    """The widths a model is measured at, the float network first where there is one."""
    return (["float"] if model.has_float else []) + [*map(str, model.pairs), *model.assignments]


def select(model: MultiBitModel, name: str) -> None:
    model.switch(None if name == "float" else name)


def latency(
    model: MultiBitModel, x: Tensor, rounds: int, exports: Mapping[str, Session] | None = None
) -> dict[tuple[str, str], float]:
    """Milliseconds of a pass of x (B, C, H, W), by width and what runs it: EAGER, or an export by its name."""

    def run(name: str) -> Callable[[], float]:
        def case() -> float:
            select(model, name)
            start = time.perf_counter()
            model(x)
            return time.perf_counter() - start

        return case

    def run_export(session: Session, name: str) -> Callable[[], float]:
        def case() -> float:
            session.switch(name)
            start = time.perf_counter()
            session(images)
            return time.perf_counter() - start

        return case

    images = x.numpy()
    cases = {(name, EAGER): run(name) for name in names_of(model)}
    for backend, session in (exports or {}).items():
        cases |= {(name, backend): run_export(session, name) for name in session.widths}
    with torch.inference_mode():
        return interleaved(cases, rounds)


def switching(model: MultiBitModel, rounds: int) -> dict[str, float]:
    """Milliseconds of a whole-model switch between the narrowest and the widest pair: warm, and with nothing ready."""
    ends = (min(model.pairs), max(model.pairs))
    turn = {"warm": 0, "cold": 0}

    def case(kind: str) -> Callable[[], float]:
        def switch() -> float:
            turn[kind] += 1
            if kind == "cold":
                model.cache = WeightCache(model.cache.limit)
            else:
                model.switch(ends[turn[kind] % 2])  # ready, and the one before is ready too
                model.switch(ends[1 - turn[kind] % 2])
            start = time.perf_counter()
            model.switch(ends[turn[kind] % 2])
            return time.perf_counter() - start

        return switch

    return interleaved({kind: case(kind) for kind in turn}, rounds)


def memory(model: MultiBitModel) -> dict[str, int]:
    """Bytes of everything stored, and of the ready weights of one width."""
    model.cache = WeightCache(model.cache.limit)
    model.switch(max(model.pairs))
    return {"stored": sum(tensor.nbytes for tensor in model.buffers()), "ready": model.cache.bytes}
