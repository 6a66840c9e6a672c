"""What an artifact weighs in each packing, and how few bits of the latent and of tau lose nothing.

    python benchmarks/packing.py                 # all parts; the real networks need PTMQ_DATA
    python benchmarks/packing.py --parts size

Results go to benchmarks/results/packing.json and packing.md, part by part.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from random_models import ONE_PLANE, THREE_PLANES, WIDTHS, random_model
from torch import Tensor, fx, nn

import ptmq_lightning as ptmq
from ptmq_lightning.artifact.artifact import save
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS, read_manifest
from ptmq_lightning.data.module import calibration_images, draw_calibration
from ptmq_lightning.data.sources import Sources, open_data
from ptmq_lightning.evaluation.cost import size_bytes
from ptmq_lightning.models.equalize import equalize
from ptmq_lightning.models.fold import fold
from ptmq_lightning.models.graph import trace
from ptmq_lightning.models.reparametrize import reparametrize
from ptmq_lightning.models.zoo import Network, build
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, weights_of
from ptmq_lightning.runtime.spec import BitAssignment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REAL = {  # network -> data, checkpoint, images, transforms after the fold
    "cifar_resnet20": ("cifar10", "resnet20", 1000, ()),
    "vit_t": ("imagenet", "vit_tiny_patch16_224", 350, (reparametrize,)),
    "mobileone_s0": ("imagenet", "mobileone_s0_reparam", 350, (equalize,)),
}
RECIPES = {  # free widths and planes
    "one plane, all widths tied": ((), ONE_PLANE),
    "2 and 3 free, planes {2} {3} {4..8}": ((2, 3), THREE_PLANES),
}
OFFSET_STEPS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"size": sizes, "latent": latents, "offset": offsets}
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    file = RESULTS / "packing.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for part in options.parts:
        found[part] = parts[part]()
        write_atomically(file, json.dumps(found, indent=1) + "\n")
        write_atomically(file.with_suffix(".md"), report(found))
    print(report(found))


def sizes() -> list[dict[str, Any]]:
    """Bytes of each packing; the weights' share and the rest, by what it is."""
    rows = []
    for name in ("resnet18", "deit_s"):
        for recipe, (free, plane_of) in RECIPES.items():
            model = random_model(name, free=free, plane_of=plane_of)
            rows += [size_of(model, packing) | {"network": name, "recipe": recipe} for packing in ("latent", "nested")]
        weights, rest = sum(layer.weights for layer in model.layers.values()), other_bytes(model)
        rows.append({"network": name, "recipe": "FP32", "weights": weights, "total": 4 * weights + rest})
        single = sum(size_bytes(model, BitAssignment.uniform(b, b, model)) for b in WIDTHS)
        rows.append({"network": name, "recipe": "seven single-bit models", "weights": weights, "total": single})
    return rows


def size_of(model: MultiBitModel, packing: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model", packing)
        manifest = read_manifest(Path(folder) / "model")
        total = sum((Path(folder) / "model" / file).stat().st_size for file in (MANIFEST, TENSORS))
    found = dict.fromkeys(("integers", "weight steps and ratios", "activation steps", "biases, norms, embeddings"), 0)
    for key, label in manifest["tensors"].items():
        size = torch.Size(label["shape"]).numel() * (1 if label["dtype"] == "uint8" else 4)
        integers = label["dtype"] == "uint8" and not key.endswith(".shifts")
        kind = 0 if integers else 1 if ".weight." in key else 2 if ".quantizers." in key else 3
        found[list(found)[kind]] += size
    found["names, graphs, hashes (JSON)"] = total - sum(found.values())
    return {
        "packing": packing,
        "weights": sum(layer.weights for layer in model.layers.values()),
        "total": total,
    } | found


def other_bytes(model: MultiBitModel) -> int:
    """FP32 bytes of what is no weight: biases, norms, embeddings."""
    held = {key: tensor for key, tensor in model.state_dict().items() if ".weight." not in key}
    return sum(tensor.numel() * 4 for key, tensor in held.items() if ".quantizers." not in key)


def data_of(name: str) -> tuple[Network, Sources]:
    source, checkpoint, images, _ = REAL[name]
    root = Path(os.environ["PTMQ_DATA"]) / source
    network = build(name, checkpoint=root / f"{checkpoint}.safetensors")
    return network, open_data(source, root=root, preprocessing=network.preprocessing, val_images=images)


@torch.inference_mode()
def latents() -> list[dict[str, Any]]:
    """Relative logit error and top-1 of the latent float network of L bits, on real networks."""
    rows = []
    for name, (*_, transforms) in REAL.items():
        network, sources = data_of(name)
        gm = trace(network.module, network.preprocessing.input_size)
        fold(gm)
        images = calibration_images(sources.train, draw_calibration(sources.train, 32, 0, sources.val))
        for transform in transforms:
            transform(gm, images)
        networks = {"FP32": gm} | {f"L={bits}": on_grid(gm, bits) for bits in range(8, 13)}
        logits = {key: [] for key in networks}
        labels = []
        for images, targets in batches(sources):
            labels.append(targets)
            for key, each in networks.items():
                logits[key].append(each(images))
        rows += [figures(name, key, torch.cat(found), torch.cat(logits["FP32"]), torch.cat(labels))
                 for key, found in logits.items()]  # fmt: skip
        print(rows[-6:], flush=True)
    return rows


def batches(sources: Sources) -> Iterator[tuple[Tensor, Tensor]]:
    loader = torch.utils.data.DataLoader(sources.val, batch_size=50)
    yield from ((images, torch.as_tensor(labels)) for images, labels in loader)


def on_grid(gm: fx.GraphModule, bits: int) -> fx.GraphModule:
    """A copy whose weights stand on the latent grid of `bits` bits."""
    twin = copy.deepcopy(gm)
    for module in twin.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            n, step = grid.latent(module.weight, bits)
            module.weight = nn.Parameter(n.float() * grid.per_channel(step, n), requires_grad=False)
    return twin


def figures(name: str, key: str, found: Tensor, fp: Tensor, labels: Tensor) -> dict[str, Any]:
    """top-1 and agreement in percent, sum (fp - q)^2 / sum fp^2 over the images."""
    return {
        "network": name,
        "bits": key,
        "images": len(labels),
        "logit_error": float((found - fp).double().square().sum() / fp.double().square().sum()),
        "top1": round(100 * float((found.argmax(1) == labels).double().mean()), 2),
        "agreement": round(100 * float((found.argmax(1) == fp.argmax(1)).double().mean()), 2),
    }


def offsets() -> list[dict[str, Any]]:
    """ResNet-20 with learned offsets: tau in fewer bits against tau in eight."""
    network, sources = data_of("cifar_resnet20")
    images = calibration_images(sources.train, draw_calibration(sources.train, 256, 0, sources.val))
    shipped, grid.OFFSET_BITS = grid.OFFSET_BITS, 8  # what is learned is committed in 255ths, and rounded further below
    try:
        model = ptmq.quantize(network, images, overrides=["rounding=offset"])
        ptmq.reconstruct(model, images, rounding="offset", iters=OFFSET_STEPS)
        fine = {name: weight.rounding for block in model.blocks for name, weight in weights_of(block)}
        rows = []
        for bits in range(1, 9):
            grid.OFFSET_BITS = bits
            for block in model.blocks:
                for name, weight in weights_of(block):
                    if weight.kind == "offset":
                        tau = torch.round(fine[name].double() / 255 * (2**bits - 1)).to(torch.uint8)
                        weight.set_rounding("offset", tau, weight.plane_of)
            rows += [row | {"bits": bits} for row in accuracy(model, sources)]
        return rows
    finally:
        grid.OFFSET_BITS = shipped


@torch.inference_mode()
def accuracy(model: MultiBitModel, sources: Sources) -> list[dict[str, Any]]:
    images, labels = (torch.cat(parts) for parts in zip(*batches(sources), strict=True))
    logits = {}
    for which in (None, "w2a4", "w3a3", "w4a4", "w8a8"):
        with at_bits(model, which):
            logits[which] = torch.cat([model(part) for part in images.split(100)])
    return [
        figures("cifar_resnet20", str(which), found, logits[None], labels) | {"width": which}
        for which, found in logits.items()
        if which is not None
    ]


def report(found: dict[str, Any]) -> str:
    text = []
    if "size" in found:
        text += ["## Bytes on disk, for all of 2 to 8 bits at once", "", SIZE_HEAD, "|---|---|---|---|---|---|---|"]
        for row in found["size"]:
            per = [8 * row[key] / row["weights"] for key in ("integers", "total") if key in row]
            cells = f"{per[0]:.2f}" if len(per) == 2 else "-"
            rest = "-" if len(per) < 2 else f"{per[1] - per[0]:.2f}"
            text.append(
                f"| {row['network']} | {row['recipe']} | {row.get('packing', '-')} | {cells} | {rest} | {per[-1]:.2f} "
                f"| {row['total'] / 1e6:.2f} |"
            )
        text += ["", "The rest, bytes:", "", "| network | recipe | packing | " + " | ".join(REST) + " |"]
        text.append("|---|---|---|" + "---|" * len(REST))
        for row in found["size"]:
            if "packing" in row:
                cells = " | ".join(f"{row[key]:,}" for key in REST)
                text.append(f"| {row['network']} | {row['recipe']} | {row['packing']} | {cells} |")
    for part, head in (("latent", "The latent float network of L bits"), ("offset", "Offset tau in fewer bits")):
        if part in found:
            text += ["", f"## {head}", "", ACCURACY_HEAD, "|---|---|---|---|---|---|"]
            text += [
                f"| {row['network']} | {row['bits']}{' bits, ' + row['width'] if 'width' in row else ''} "
                f"| {row['images']} | {row['logit_error']:.2e} | {row['top1']:.2f} | {row['agreement']:.2f} |"
                for row in found[part]
            ]
    return "\n".join(text) + "\n"


SIZE_HEAD = "| network | recipe | packing | integers, bits/weight | rest, bits/weight | all, bits/weight | MB |"
ACCURACY_HEAD = "| network | bits | images | relative logit error | top-1 % | agreement % |"
REST = (
    "weight steps and ratios", "activation steps", "biases, norms, embeddings", "names, graphs, hashes (JSON)",
)  # fmt: skip

if __name__ == "__main__":
    main()
