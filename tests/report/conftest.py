"""Results of a made-up run, for the tests of this room."""

from __future__ import annotations

from typing import Any

import pytest

from ptmq_lightning.report.record import STAGES


def row(config: str = "w4a4", **changes: Any) -> dict[str, Any]:
    """One row of results.json."""
    figures = {
        "config": config,
        "w_bits": 4.0,
        "a_bits": 4.0,
        "top1": 90.0,
        "top5": 99.0,
        "agreement": 97.0,
        "sqnr_db": 15.0,
        "logit_error": 0.03,
        "size_bytes": 1000,
        "bit_ops": 2000,
    }
    return {**figures, **changes}


@pytest.fixture
def results() -> dict[str, Any]:
    """All of results.json but the schema's number."""
    return {
        "model": "resnet20",
        "data": "cifar10",
        "method": "ptmq",
        "seed": 0,
        "versions": {"torch": "2"},
        "calibration_images": 1024,
        "evaluation_images": 1000,
        "fp": {"top1": 91.5, "top5": None},
        "seconds": dict.fromkeys(STAGES, 0) | {"calibrate": 1.0, "reconstruct": 2.5, "evaluate": 3},
        "peak_memory_bytes": 10**9,
        "rows": [row("w4a4"), row("w3a3", top1=80.0, sqnr_db=None)],
    }
