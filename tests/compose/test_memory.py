"""Freed memory stays with the process where glibc is, and nothing breaks where it is not."""

from __future__ import annotations

import ctypes
import gc
import platform
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from ptmq_lightning.compose.memory import (
    forget_peak_memory,
    old_objects_set_aside,
    peak_memory,
)
from ptmq_lightning.runtime.memory import SETTINGS, keep_freed_memory, release_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")
def test_glibc_accepts_every_setting() -> None:
    assert keep_freed_memory()


def test_a_c_library_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not keep_freed_memory()


def test_every_setting_is_made_and_a_refused_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []

    def mallopt(name: int, value: int) -> int:
        made.append((name, value))
        return 0 if len(made) == 2 else 1

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert not keep_freed_memory()
    assert dict(made) == SETTINGS


KEPT_THEN_RELEASED = """
import torch
from ptmq_lightning.runtime.memory import keep_freed_memory, release_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

keep_freed_memory()
before = resident()
held = [torch.ones(1 << 18) for _ in range(200)]  # a MiB each
last = torch.ones(1 << 18)  # above them in the heap: what is below cannot just be cut off
del held
kept = resident() - before
assert release_freed_memory()
print(kept >> 20, (resident() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")
def test_what_is_kept_is_handed_back_when_asked() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT_THEN_RELEASED], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 150 and left < 50


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="of a Linux process on a CPU")
def test_the_peak_of_a_run_is_not_that_of_an_earlier_one() -> None:
    large = torch.ones(2**27)  # 512 MiB
    high = peak_memory()
    del large
    release_freed_memory()
    forget_peak_memory()
    assert peak_memory() < high - 2**28


@pytest.fixture
def nothing_set_aside() -> Iterator[None]:
    """The tests set the libraries aside themselves; here as in a process of a user."""
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


def test_old_objects_are_set_aside_for_the_time_of_the_fits_alone(nothing_set_aside: None) -> None:
    with old_objects_set_aside():
        assert gc.get_freeze_count() > 1000
        ours: list[object] = [object()]
        ours.append(ours)  # a cycle of its own is still found
        del ours
        assert gc.collect() >= 1
    assert gc.get_freeze_count() == 0


def test_what_a_caller_set_aside_stays_so(nothing_set_aside: None) -> None:
    gc.freeze()
    with old_objects_set_aside():
        pass
    assert gc.get_freeze_count() > 1000
