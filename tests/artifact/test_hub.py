"""An artifact goes to a hub and comes back the same, with a card; the hub here is a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub._local_folder import write_download_metadata

from ptmq_lightning.artifact import artifact, hub
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS
from ptmq_lightning.device import cli
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.info import Evaluation, ModelInfo, Row
from ptmq_lightning.runtime.preprocessing import Preprocessing
from tests.artifact.tiny import tiny_model

REPO = "someone/tiny-every-width"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tiny_model()
    row = Row("w4a4", 4, 4, 61.5, None, 75.25, 9.5, 0.1, 100, 10**6)
    model.info = ModelInfo(
        "tiny",
        "random weights",
        preprocessing=Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3),
        accuracy=Evaluation({"top1": 70.0, "top5": None}, [row], 200),
    )
    return artifact.save(model, tmp_path / "model")


@pytest.fixture
def folder_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a folder per repository in the place of the hub."""
    root = tmp_path / "hub"

    class Api:
        def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
            (root / repo).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, *, folder_path: str, repo_id: str, commit_message: str) -> Any:
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)
            return SimpleNamespace(commit_url=f"hub/{repo_id}/commit/{commit_message}")

    def snapshot_download(
        repo: str, *, revision: str | None, local_dir: Path | str | None = None, allow_patterns: list[str]
    ) -> str:
        """Links to blobs in the cache, or files in local_dir with the notes that are left beside them."""
        if not (root / repo).is_dir():
            raise FileNotFoundError(f"404: no {repo}.\nRequest ID: 1")
        place = Path(local_dir or tmp_path / "cache" / "snapshots" / "0")
        place.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if local_dir is None:
                blob = tmp_path / "cache" / "blobs" / name
                blob.parent.mkdir(exist_ok=True)
                shutil.copy(root / repo / name, blob)
                (place / name).unlink(missing_ok=True)
                (place / name).symlink_to(blob)
            else:
                shutil.copy(root / repo / name, place)
                write_download_metadata(place, name, "0", "0")
        return str(place)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return root


def test_what_is_pushed_is_pulled(saved: Path, folder_hub: Path, tmp_path: Path) -> None:
    assert hub.push(saved, REPO, message="first") == f"hub/{REPO}/commit/first"
    assert sorted(path.name for path in (folder_hub / REPO).iterdir()) == sorted([hub.CARD, MANIFEST, TENSORS])
    model, x = hub.pull(REPO, tmp_path / "pulled"), torch.randn(4, 3)
    original = artifact.load(saved)
    for which in (4, 8, None):
        model.switch(which)
        original.switch(which)
        assert torch.equal(model(x), original(x))
    assert sorted(path.name for path in (tmp_path / "pulled").iterdir()) == [MANIFEST, TENSORS]
    assert not any((tmp_path / "pulled" / name).is_symlink() for name in (MANIFEST, TENSORS))
    artifact.save(model, tmp_path / "pulled")


def test_the_command_pushes_and_pulls(
    saved: Path, folder_hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["push", str(saved), REPO, "--private"]) == 0
    assert cli.main(["pull", str(tmp_path / "pulled"), REPO]) == 0
    assert (tmp_path / "pulled" / TENSORS).read_bytes() == (saved / TENSORS).read_bytes()
    assert f"hub/{REPO}/commit" in capsys.readouterr().out
    assert cli.main(["pull", str(tmp_path / "pulled"), "no/such"]) == 1


def test_what_is_pulled_replaces_an_artifact_only_if_it_is_sound(saved: Path, folder_hub: Path, tmp_path: Path) -> None:
    hub.push(saved, REPO)
    place = artifact.save(tiny_model(), tmp_path / "pulled")
    tensors = folder_hub / REPO / TENSORS
    intact = tensors.read_bytes()
    tensors.write_bytes(intact[:-1])
    with pytest.raises(ArtifactError, match="is truncated or no safetensors file"):
        hub.pull(REPO, place)
    assert artifact.load(place).info == ModelInfo()
    tensors.write_bytes(intact)
    assert hub.pull(REPO, place).info == artifact.load(place).info == artifact.load(saved).info


def test_the_card_tells_widths_figures_and_how_to_load(saved: Path) -> None:
    text = hub.card(saved, REPO)
    assert text.startswith("---\nlibrary_name: ptmq-lightning\npipeline_tag: image-classification\n")
    assert "# tiny at every bit-width\n" in text
    assert "Widths (weights, activations): w4a4, w8a8.\n" in text
    assert "| float | 70.00 | - | - |\n| w4a4 | 61.50 | - | 75.25 |\n" in text
    assert f'model = pull("{REPO}")\nmodel.switch("w4a4")' in text
    assert "input_size [3, 8, 8], mean [0.5, 0.5, 0.5], " in text


def test_the_card_of_a_model_without_figures_has_no_table(tmp_path: Path) -> None:
    text = hub.card(artifact.save(tiny_model(), tmp_path / "model"), REPO)
    assert "## Accuracy" not in text and "# Network at every bit-width" in text


def test_a_damaged_artifact_is_not_pushed(saved: Path, folder_hub: Path) -> None:
    (saved / TENSORS).write_bytes((saved / TENSORS).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="is truncated or no safetensors file"):
        hub.push(saved, REPO)
    assert not folder_hub.exists()


def test_a_repository_that_is_not_there_is_one_message(folder_hub: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        hub.pull("nobody/nothing")
    assert str(error.value) == (
        "cannot pull from 'nobody/nothing': FileNotFoundError: 404: no nobody/nothing. Expected a repository "
        "'owner/name' that this machine can reach; check the name, the network and the token (hf auth login)."
    )


def test_the_hub_s_own_functions_take_these_arguments() -> None:
    """The folder above stands in for them; this holds it to their names."""
    import inspect

    upload = inspect.signature(huggingface_hub.HfApi.upload_folder).parameters
    create = inspect.signature(huggingface_hub.HfApi.create_repo).parameters
    download = inspect.signature(huggingface_hub.snapshot_download).parameters
    assert {"folder_path", "repo_id", "commit_message"} <= set(upload)
    assert {"private", "exist_ok"} <= set(create) and list(create)[1] == "repo_id"
    assert {"revision", "allow_patterns"} <= set(download) and next(iter(download)) == "repo_id"
