"""The walls between the rooms stand, and the guards that watch them can fail."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ptmq_lightning
from ptmq_lightning.artifact import artifact
from tests.artifact.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[1]
ON_DEVICE = {  # room: what it may import of ours
    "runtime": (),
    "artifact": ("runtime",),
    "export": ("runtime", "artifact"),
    "device": ("runtime", "artifact", "export", "allocate", "evaluation"),
}
ROOMS = {*ON_DEVICE, "data", "models", "quant", "reconstruction", "finetune", "evaluation", "allocate", "report",
         "config", "compose"}  # fmt: skip
FORBIDDEN = "lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "matplotlib", "pandas", "timm", "PIL"
ALWAYS = {"torch", "numpy", "safetensors"}
WHEN_USED = ALWAYS | {
    "timm", "onnx", "onnxruntime", "openvino", "huggingface_hub", "PIL", "qonnx", "ai_edge_litert", "flatbuffers",
    "coremltools", "ethosu",
}  # fmt: skip

GUARD = f"""
import importlib, pkgutil, sys
for name in {(*ON_DEVICE,)}:
    room = importlib.import_module(f"ptmq_lightning.{{name}}")
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        importlib.import_module(module.name)
from ptmq_lightning.artifact.artifact import load
load(sys.argv[1])
print(*[name for name in {FORBIDDEN} if name in sys.modules])
"""

CROSSINGS = [  # the importing file, what it may not import
    ("runtime/extra.py", "import ptmq_lightning.data.module"),
    ("runtime/extra.py", "import ptmq_lightning.artifact.packing"),
    ("artifact/extra.py", "import ptmq_lightning.export.flow"),
    ("artifact/extra.py", "import lightning"),
    ("export/extra.py", "import ptmq_lightning.models.zoo"),
    ("export/extra.py", "import ptmq_lightning.device.pictures"),
    ("export/extra.py", "import pandas"),
    ("device/extra.py", "import ptmq_lightning.models.zoo"),
    ("device/extra.py", "import ptmq_lightning.quant.steps"),
    ("device/extra.py", "import matplotlib"),
    ("runtime/extra.py", "def late():\n    import lightning"),
    ("data/extra.py", "import ptmq_lightning.models.zoo"),
    ("models/extra.py", "import ptmq_lightning.quant.steps"),
    ("quant/extra.py", "import ptmq_lightning.data.module"),
    ("reconstruction/extra.py", "import ptmq_lightning.evaluation.accuracy"),
    ("finetune/extra.py", "import ptmq_lightning.reconstruction.block"),
    ("evaluation/extra.py", "import ptmq_lightning.allocate.greedy"),
    ("report/extra.py", "from omegaconf import DictConfig"),
    ("allocate/extra.py", "import ptmq_lightning.config.schema"),
    ("quant/extra.py", "import ptmq_lightning.artifact.packing"),
    ("device/extra.py", "import hydra"),
    ("config/extra.py", "import ptmq_lightning.compose.pipeline"),
    ("attic/__init__.py", ""),  # a room without a place in the table
]


def loaded(saved: Path, package: Path = ROOT) -> list[str]:
    """What importing every module of the device's rooms and loading the artifact ``saved`` loads and should not, in a
    fresh interpreter."""
    script = f"import sys; sys.path.insert(0, {str(package)!r}){GUARD}"
    done = subprocess.run([sys.executable, "-c", script, str(saved)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on the package in ``folder``."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """The modules that ``file`` imports, and whether at its top."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ".", node in tree.body


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to be damaged."""
    shutil.copytree(ROOT / "ptmq_lightning", tmp_path / "ptmq_lightning", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact.save(tiny_model(), tmp_path_factory.mktemp("walls") / "model")


def test_importing_what_a_device_needs_and_loading_an_artifact_loads_no_training_library(saved: Path) -> None:
    assert loaded(saved) == []


@pytest.mark.parametrize(("room", "library"), [(room, "lightning") for room in ON_DEVICE] + [("runtime", "omegaconf")])
def test_a_training_library_on_a_device_is_noticed(room: str, library: str, saved: Path, copy: Path) -> None:
    (copy / "ptmq_lightning" / room / "extra.py").write_text(f"import {library}\n")
    assert library in loaded(saved, copy)


FILES = [file for room in ON_DEVICE for file in sorted((ROOT / "ptmq_lightning" / room).glob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_file_imports_what_a_device_has(file: Path) -> None:
    rooms = (file.parent.name, *ON_DEVICE[file.parent.name])
    for name, at_top in imports(file):
        package = name.split(".")[0]
        allowed = ALWAYS if at_top else WHEN_USED
        ours = name.startswith(tuple(f"ptmq_lightning.{room}" for room in rooms))
        assert ours or package in allowed | sys.stdlib_module_names, f"{file.name} imports {name}, at its top: {at_top}"


def test_the_rooms_are_those_of_the_table() -> None:
    package = ROOT / "ptmq_lightning"
    assert {folder.name for folder in package.iterdir() if folder.is_dir() and folder.name != "__pycache__"} == ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_is_entered_by_the_file_that_owns_the_name(room: str) -> None:
    assert (ROOT / "ptmq_lightning" / room / "__init__.py").read_text() == ""


def test_the_untouched_package_keeps_its_contracts(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("file", "line"), CROSSINGS, ids=lambda value: value.split("\n")[-1].strip())
def test_an_import_through_a_wall_breaks_a_contract(file: str, line: str, copy: Path) -> None:
    extra = copy / "ptmq_lightning" / file
    extra.parent.mkdir(exist_ok=True)
    extra.write_text(f"{line}\n")
    done = lint_imports(copy)
    module = f"ptmq_lightning/{file}".removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert done.returncode != 0
    assert module in done.stdout, done.stdout + done.stderr


def test_the_public_names_are_listed_without_loading_them() -> None:
    names = {"quantize", "reconstruct", "evaluate", "save", "load", "at_bits", "__version__"}
    assert names <= set(dir(ptmq_lightning))


@pytest.mark.parametrize("name", ["quantize", "reconstruct", "evaluate", "save", "load", "at_bits"])
def test_a_public_name_can_be_called(name: str) -> None:
    assert callable(getattr(ptmq_lightning, name))


def test_no_public_function_bears_the_name_of_a_room() -> None:
    package = Path(ptmq_lightning.__file__).parent
    functions = {
        name for file in package.rglob("*.py") for name in re.findall(r"^def ([a-z]\w*)", file.read_text(), re.M)
    }
    assert not functions & ROOMS
    assert "measure_accuracy" in functions


def test_an_unknown_name_is_answered_with_the_public_ones() -> None:
    with pytest.raises(AttributeError) as caught:
        _ = ptmq_lightning.requantize
    assert str(caught.value) == (
        "ptmq_lightning has no public name 'requantize'; the public names are quantize, reconstruct, evaluate, save, "
        "load, at_bits: import everything else from the file that owns it"
    )
