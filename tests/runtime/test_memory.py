"""Freed memory is handed back where the C library can; how much, tests/compose/test_memory.py looks at."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest

from ptmq_lightning.runtime.memory import release_freed_memory


def test_a_c_library_without_malloc_trim_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not release_freed_memory()
