"""Who has the packages of an artifact's runtime alone gets one line for what needs more."""

from __future__ import annotations

import subprocess
import sys

TRAINING = ("hydra", "omegaconf", "lightning", "timm", "torchmetrics", "torchvision", "wandb", "matplotlib", "sklearn")


def without(code: str, *names: str) -> subprocess.CompletedProcess[str]:
    """Run code where these packages are not installed."""
    script = f"import sys; sys.modules |= dict.fromkeys({names})\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_the_training_command_names_its_extra() -> None:
    done = without("from ptmq_lightning.compose.command import main; main()", *TRAINING)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "pip install 'ptmq-lightning[train]'" in done.stderr


def test_the_library_names_its_extra() -> None:
    done = without("import ptmq_lightning; ptmq_lightning.quantize", *TRAINING)
    assert "'ptmq-lightning[train]'" in done.stderr.splitlines()[-1]


def test_an_artifact_needs_no_training_package() -> None:
    code = "import ptmq_lightning as ptmq; ptmq.load; ptmq.save; ptmq.at_bits; import ptmq_lightning.device.cli"
    assert without(code, *TRAINING, "PIL", "huggingface_hub", "yaml", "onnx", "openvino").returncode == 0
