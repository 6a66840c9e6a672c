"""Push an artifact to the Hugging Face hub, pull it from there, and the card that explains it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS, read_manifest
from ptmq_lightning.runtime.checked import printable
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.files import replacing_file
from ptmq_lightning.runtime.info import ModelInfo, figure
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.preprocessing import Preprocessing
from ptmq_lightning.runtime.spec import BitWidth

CARD = "README.md"
FILES = (MANIFEST, TENSORS)


def push(folder: Path | str, repo: str, *, private: bool = False, message: str = "Multi-bit model") -> str:
    """Upload an artifact and its card to `repo` ("owner/name", made where it is missing); returns the commit's address.

    The artifact is loaded first: what is damaged is not pushed. Raises ArtifactError for that and for a hub that
    refuses; the token is huggingface_hub's own (`hf auth login` or HF_TOKEN).
    """
    require("hub", "huggingface_hub")
    from huggingface_hub import HfApi

    load(folder)
    with tempfile.TemporaryDirectory() as place:
        for name in FILES:
            shutil.copyfile(Path(folder) / name, Path(place) / name)
        (Path(place) / CARD).write_text(card(folder, repo), encoding="utf-8")
        try:
            api = HfApi()
            api.create_repo(repo, private=private, exist_ok=True)
            commit = api.upload_folder(folder_path=place, repo_id=repo, commit_message=message)
        except Exception as error:
            raise _failed("push to", repo, error) from error
    return str(commit.commit_url)


def pull(repo: str, folder: Path | str | None = None, *, revision: str | None = None) -> MultiBitModel:
    """Download and load the model of a repository.

    Args:
        repo: "owner/name".
        folder: where the artifact's two files are put once they have loaded; None: they stay in the hub's cache. They
            are copied from there, because the hub's own download to a folder leaves files of its own beside them.
        revision: a branch, tag or commit.

    Raises:
        ArtifactError: a repository that cannot be read, or that holds no sound artifact.
    """
    require("hub", "huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        place = Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:
        raise _failed("pull from", repo, error) from error
    model = load(place)
    if folder is not None:
        # Both are whole before either gets its name; a kill between the two leaves hashes that load() refuses.
        with ExitStack() as copies:
            for name in FILES:
                shutil.copyfile(place / name, copies.enter_context(replacing_file(Path(folder) / name)))
    return model


def _failed(what: str, repo: str, error: Exception) -> ArtifactError:
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return ArtifactError(
        f"cannot {what} '{repo}': {type(error).__name__}: {first} Expected a repository 'owner/name' that this "
        f"machine can reach; check the name, the network and the token (hf auth login)."
    )


def card(folder: Path | str, repo: str) -> str:
    """The model card of an artifact, in Markdown: widths, figures, how to load it."""
    manifest = read_manifest(Path(folder))
    about = ModelInfo.from_json(manifest["info"])
    pairs = [str(BitWidth.parse(pair)) for pair in manifest["pairs"]]
    size = sum((Path(folder) / name).stat().st_size for name in FILES)
    first = pairs[0]
    lines = [
        "---",
        "library_name: ptmq-lightning",
        "pipeline_tag: image-classification",
        "tags: [quantization, multi-bit, ptmq]",
        "---",
        "",
        f"# {_plain(about.name) or 'Network'} at every bit-width",
        "",
        f"One post-training multi-bit model (PTMQ) of {_plain(about.name) or 'a network'} "
        f"({_plain(about.source) or 'source unknown'}): {size / 1e6:.2f} MB for all of its widths, switched without "
        "reloading or retraining.",
        "",
        f"Widths (weights, activations): {', '.join(pairs)}."
        + (f" Mixed per layer: {', '.join(map(_plain, manifest['assignments']))}." if manifest["assignments"] else ""),
        "",
        *_table(about),
        "## How to load it",
        "",
        "```python",
        "from ptmq_lightning.artifact.hub import pull",
        "",
        f'model = pull("{repo}")',
        f'model.switch("{first}")  # in milliseconds, at any time',
        "logits = model(images)",
        "```",
        "",
        *_images(about.preprocessing),
        f"`ptmq predict DIR IMAGE --bits {first}` does all of it. Both files are data alone: safetensors, and JSON "
        "with a hash for each tensor; nothing is unpickled.",
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text of a manifest for Markdown: nothing in it is a link, a tag, a cell or any other markup."""
    return re.sub(r"[\\`*\[\]<>|&#!~]|:(?=//)", lambda found: f"&#{ord(found[0])};", printable(text))


def _table(about: ModelInfo) -> Iterator[str]:
    accuracy = about.accuracy
    if accuracy is None or not accuracy.rows:
        return
    data = f" of {_plain(about.data)}" if about.data else ""
    yield f"## Accuracy on {accuracy.images} images{data}, percent"
    yield ""
    yield "| width | top-1 | top-5 | agreement with float |"
    yield "|---|---|---|---|"
    yield f"| float | {figure(accuracy.fp['top1'])} | {figure(accuracy.fp['top5'])} | - |"
    for row in accuracy.rows:
        yield f"| {_plain(row.config)} | {figure(row.top1)} | {figure(row.top5)} | {figure(row.agreement)} |"
    yield ""


def _images(preprocessing: Preprocessing | None) -> Iterator[str]:
    if preprocessing is not None:
        told = ", ".join(f"{key} {value}" for key, value in preprocessing.to_json().items())
        yield f"Images as the float network wants them: {told}."
        yield ""
