"""details.json of a run: what its page shows beside the figures, and how, when and where it was made."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmq_lightning.compose.progress import Left
from ptmq_lightning.config.schema import Config
from ptmq_lightning.data.sources import Sources
from ptmq_lightning.evaluation.details import changed, histograms, layer_errors, worst
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.model import MultiBitModel, device_of
from ptmq_lightning.runtime.spec import BitGroups, BitWidth

DETAILS = "details.json"
SEEN, TRIED = 16, 64  # evaluation images: for the layers, and those among which changes are looked for
EDGE = 72  # pixels of a shown picture
log = logging.getLogger(__name__)


def write_details(folder: Path, model: MultiBitModel, config: Config, sources: Sources) -> None:
    """Write details.json. A run is not lost for its page: what cannot be looked at is left out with a line of log."""
    found = {**made_how(), **shown_of(model.info)}
    try:
        found |= looked_at(model, config, sources)
    except Exception as error:
        log.warning("the page shows no layers and no pictures: %s", error)
    write_atomically(folder / DETAILS, json.dumps(found) + "\n")


def made_how() -> dict[str, Any]:
    """Command, date, processor and threads."""
    return {
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """As the system calls it; of a GPU too."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([names[0] if names else platform.processor() or platform.machine(), *gpu])


def shown_of(info: ModelInfo) -> dict[str, Any]:
    """How pictures become the network's images, and the classes' names."""
    preprocessing = info.preprocessing.to_json() if info.preprocessing else None
    return {"source": info.source, "preprocessing": preprocessing, "classes": list(info.classes)}


def looked_at(model: MultiBitModel, config: Config, sources: Sources) -> dict[str, Any]:
    """Errors of the layers at every evaluated width, values of the worst, pictures that change."""
    names = [*config.bits.evaluate, *model.assignments]
    count = min(TRIED, len(sources.val))
    drawn = [sources.val[index] for index in range(0, len(sources.val), max(1, len(sources.val) // count))][:count]
    images = torch.stack([image for image, _ in drawn]).to(device_of(model))
    labels, pair = [int(label) for _, label in drawn], narrowest(config)
    errors = layer_errors(model, images[:SEEN], names)
    at = str(pair) if str(pair) in errors else names[0]
    changes = [
        {"picture": picture(images[index], model.info), "label": label, "classes": classes}
        for index, label, classes in changed(model, images, labels, names, progress=Left("report", "width"))
    ]
    return {
        "layer_errors": errors,
        "layer_images": min(SEEN, count),
        "chosen": at,
        "histograms": histograms(model, images[:SEEN], worst(errors[at]), BitWidth.parse(at)),
        "changes": changes,
        "tried": count,
    }


def narrowest(config: Config) -> BitWidth:
    """The narrowest pair that is learned."""
    return min(BitGroups.of(config.bits.groups).pairs)


def picture(image: Tensor, info: ModelInfo) -> str:
    """An image (C, H, W) as the network gets it, small, as the address of a picture inside a page; "" where it has
    other than 1 or 3 channels."""
    from PIL import Image

    if info.preprocessing is None or len(image) not in (1, 3):
        return ""
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (info.preprocessing.mean, info.preprocessing.std))
    pixels = ((image.cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    shown = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if max(shown.size) > EDGE:
        shown.thumbnail((EDGE, EDGE))
    content = io.BytesIO()
    shown.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
