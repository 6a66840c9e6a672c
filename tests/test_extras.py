"""Who has the packages of an artifact's runtime alone gets one line for what needs more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptmq_lightning.artifact import artifact
from ptmq_lightning.device import cli
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.preprocessing import Preprocessing
from tests.artifact.tiny import tiny_model

TRAINING = ("hydra", "omegaconf", "lightning", "timm", "torchmetrics", "torchvision", "wandb", "matplotlib", "sklearn")


def without(code: str, *names: str) -> subprocess.CompletedProcess[str]:
    """Run code where these packages are not installed."""
    script = f"import sys; sys.modules |= dict.fromkeys({names})\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_the_training_command_names_its_extra() -> None:
    done = without("from ptmq_lightning.compose.command import main; main()", *TRAINING)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install 'ptmq-lightning[train]'" in done.stderr


def test_train_py_names_it_too() -> None:
    script = Path(__file__).resolve().parent.parent / "train.py"
    done = without(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')", *TRAINING)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and "'ptmq-lightning[train]'" in done.stderr


@pytest.mark.parametrize(
    ("words", "package", "extra"),
    [
        ("predict {model} {picture}", "PIL", "images"),
        ("export {model} --images {picture}", "PIL", "images"),
        ("export {model} --images {folder}", "timm", "train"),
        ("push {model} someone/name", "huggingface_hub", "hub"),
        ("pull {folder}/new someone/name", "huggingface_hub", "hub"),
    ],
)
def test_each_command_for_a_device_names_the_extra_that_it_needs(
    words: str,
    package: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_model()
    model.info = ModelInfo("tiny", preprocessing=Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3))
    folder = artifact.save(model, tmp_path / "model")
    (tmp_path / "picture.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, package, None)
    given = words.format(model=folder, picture=tmp_path / "picture.png", folder=tmp_path)
    assert cli.main(given.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ptmq: {package} cannot be imported") and f"'ptmq-lightning[{extra}]'" in line


def test_the_library_names_its_extra() -> None:
    done = without("import ptmq_lightning; ptmq_lightning.quantize", *TRAINING)
    assert "'ptmq-lightning[train]'" in done.stderr.splitlines()[-1]


def test_an_artifact_needs_no_training_package() -> None:
    code = "import ptmq_lightning as ptmq; ptmq.load; ptmq.save; ptmq.at_bits; import ptmq_lightning.device.cli"
    assert without(code, *TRAINING, "PIL", "huggingface_hub", "yaml", "onnx", "openvino").returncode == 0
