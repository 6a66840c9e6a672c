"""torchvision imports beside any torch, costs nothing before it is imported, and no other error is hidden."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ptmq_lightning.runtime import torchvision_shim
from ptmq_lightning.runtime.torchvision_shim import SYMPTOM, TorchvisionFinder, execute

BROKEN = 'import torch\n\n@torch.library.register_fake("torchvision::nms")\ndef nms(*arguments): ...\n'


def python(script: str, path: Path | None = None) -> str:
    """What ``script`` prints in a fresh interpreter, with ``path`` before all installed packages."""
    script = f"import sys\nsys.path.insert(0, {str(path)!r})\n{script}" if path else script
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def failing(*errors: Exception) -> tuple[Callable[[ModuleType], None], list[str]]:
    """A module's body that raises ``errors`` one after the other, then succeeds; and the names it ran under."""
    left, runs = list(errors), []

    def run(module: ModuleType) -> None:
        runs.append(module.__name__)
        if left:
            raise left.pop(0)

    return run, runs


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Counts the declarations instead of making them."""
    calls: list[str] = []
    monkeypatch.setattr(torchvision_shim, "_declare", lambda: calls.append("declared"))
    return calls


def test_timm_torchmetrics_and_lightning_import_after_the_package() -> None:
    script = "import ptmq_lightning, lightning, timm, torchmetrics, torchvision; print(torchvision.transforms.__name__)"
    assert python(script) == "torchvision.transforms"


def test_importing_the_package_loads_neither_torch_nor_torchvision() -> None:
    script = "import ptmq_lightning, sys; print({'torch', 'torchvision', 'timm', 'lightning'} & set(sys.modules))"
    assert python(script) == "set()"


def test_a_torchvision_without_its_operators_is_cured(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("from torchvision import operators\nWHOLE = True\n")
    (tmp_path / "torchvision" / "operators.py").write_text(BROKEN)
    script = (
        "import ptmq_lightning, gc, torch, torchvision; gc.collect(); print(torchvision.WHOLE, torch.ops.torchvision"
    )
    assert python(f"{script}.nms.default)", tmp_path) == "True torchvision.nms.default"


def test_that_torchvision_fails_without_the_package(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text(BROKEN)
    script = "try:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)"
    assert python(script, tmp_path) == SYMPTOM


def test_a_whole_torchvision_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "torchvision.py").write_text("import torch\n")
    script = "import ptmq_lightning, torch, torchvision; print(hasattr(torch.ops.torchvision, 'nms'))"
    assert python(script, tmp_path) == "False"


def test_an_absent_torchvision_stays_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    torchvision_shim.install()
    torchvision_shim.install()
    assert len(sys.meta_path) == 1
    assert TorchvisionFinder().find_spec("torchvision", None) is None


def test_the_cured_module_runs_once_more_without_its_half_imported_parts(
    declared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.half", ModuleType("half"))
    monkeypatch.setattr(sys, "modules", sys.modules.copy())  # the other parts of torchvision come back afterwards
    run, runs = failing(RuntimeError(SYMPTOM))
    execute(run, ModuleType("torchvision"))
    assert (runs, declared) == (["torchvision", "torchvision"], ["declared"])
    assert "torchvision.half" not in sys.modules


@pytest.mark.parametrize("error", [RuntimeError("CUDA driver too old"), ImportError(SYMPTOM), OSError("no such file")])
def test_any_other_error_passes_through(error: Exception, declared: list[str]) -> None:
    run, runs = failing(error)
    with pytest.raises(type(error)) as caught:
        execute(run, ModuleType("torchvision"))
    assert (caught.value, runs, declared) == (error, ["torchvision"], [])


def test_the_error_that_is_cured_is_the_one_torch_raises() -> None:
    with pytest.raises(RuntimeError, match="operator torchvision_of_this_test::nms does not exist"):
        torch.library.register_fake("torchvision_of_this_test::nms")(lambda: None)
