"""What every test stands on: one thread, and the real images and weights where they are."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ptmq_lightning  # noqa: F401  first, also where a test module imports timm or lightning before it

RUNTIMES = {"onnxruntime", "openvino"}
EXPORT = Path(__file__).parent / "export"
torch.set_num_threads(1)  # the processes of pytest-xdist share the cores, and sums keep their order


def pytest_collection_finish() -> None:
    """Every fit of Lightning ends with a full garbage collection. What the libraries hold is left out of it: going
    through it each time took most of a small fit's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights; without it the test is skipped with a reason."""
    root = Path(os.environ.get("PTMQ_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"NO REAL IMAGES: there is no folder {root}; set PTMQ_DATA=DIR to run this test")
    return root.resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if EXPORT in item.path.parents:
            item.add_marker("runtimes")


@pytest.fixture(autouse=True)
def runtimes_stay_apart(request: pytest.FixtureRequest) -> Iterator[None]:
    """ONNX Runtime and OpenVINO beside everything else in one process have ended it at random."""
    before = RUNTIMES & sys.modules.keys()
    yield
    if request.node.get_closest_marker("runtimes") is None:
        loaded = (RUNTIMES & sys.modules.keys()) - before
        assert not loaded, f"this test loads {', '.join(loaded)}: mark it @pytest.mark.runtimes"
