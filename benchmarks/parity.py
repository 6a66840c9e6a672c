"""Exports against the simulation on real networks and images: agreement, accuracy, and every layer by itself.

    PTMQ_DATA=DIR python benchmarks/parity.py
    PTMQ_DATA=DIR python benchmarks/parity.py --artifact cifar_resnet20=outputs/cifar_resnet20/default/model
    PTMQ_DATA=DIR python benchmarks/parity.py --cases cifar_resnet20+deploy --artifact cifar_resnet20+deploy=DIR

The fitted models of the table "Before and after", each with placement.deploy=none and onnx:

    train.py experiment=cifar_resnet20 recon.iters=60 bits.extra=[w4a8]
    train.py experiment=imagenet_mobileone recon.iters=30 bits.groups=[[w4a4],[w6a6,w8a8]] bits.extra=[w4a8]
        data.calibration_images=128 data.step_size_images=64

A case whose name ends in "+deploy" is the network with placement.deploy=onnx. One without an artifact is rounded to
nearest and calibrated here, which the comparison does not mind: both sides run the same integers. Widths that a model
was not prepared for are left out. The rows "simulation" say how far the simulation is from itself where the images
differ by noise of 1e-6 of their deviation, about what the order of additions makes in float32: nothing that computes in
another order can be nearer. Where the image is quantized, which would take such noise away, it stands behind the
quantizer. "As exported": the simulation with the three roundings that an ONNX export adds (the image and convolutions
before a shortcut at 8 bits, biases as int32); what is left there is the order of additions.
Results: benchmarks/results/parity.json, .md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import openvino
import torch
from torch import Tensor

from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.data.module import calibration_images, draw_calibration
from ptmq_lightning.data.sources import open_data
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session
from ptmq_lightning.quant.steps import calibrate
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel, at_bits

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DEPLOYED = "+deploy"
CASES = {  # experiment -> evaluation images
    "cifar_resnet20": 1000, "cifar_resnet20+deploy": 1000, "imagenet_mobileone": 200, "imagenet_mobileone+deploy": 200,
    "imagenet_lite0": 200, "imagenet_lite0+deploy": 200, "imagenet_vit_t": 200,
}  # fmt: skip
RUNTIMES = ("onnx static", "onnx switchable", "openvino static")
WIDTHS = ("w8a8", "w6a6", "w4a8", "w4a4")
CALIBRATION = 32
NOISE = 1e-6
AGREEMENT, POINTS = 99.0, 0.2
BEFORE_AND_AFTER = "Before and after: ONNX Runtime against the simulation, placement.deploy=none and onnx"
EVERY = "Every width and runtime"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--artifact", action="append", default=[], metavar="CASE=DIR", help="a fitted model to export")
    parser.add_argument("--images", type=int, help="evaluation images, at most")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=RUNTIMES)
    options = parser.parse_args()
    artifacts = dict(given.split("=", 1) for given in options.artifact)
    file = RESULTS / "parity.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in options.cases:
        count = min(CASES[name], options.images or CASES[name])
        found[name] = case(name, count, artifacts.get(name), options.runtimes)
        found["versions"] = {"onnxruntime": onnxruntime.__version__, "openvino": openvino.__version__}
        write_atomically(file, json.dumps(found, indent=2) + "\n")
        write_atomically(RESULTS / "parity.md", page(found))
    print(page(found))


def case(name: str, count: int, folder: str | None, runtimes: list[str]) -> dict[str, Any]:
    """Every width and runtime of one network on `count` evaluation images."""
    config = configuration([f"experiment={name.removesuffix(DEPLOYED)}"])
    config = replace(config, placement=replace(config.placement, deploy="onnx" if DEPLOYED in name else "none"))
    network = pipeline.build(config.model)
    data = config.data
    sources = open_data(data.name, preprocessing=network.preprocessing, seed=data.seed, calibration_images=256,
                        root=data.root, train=data.train, val=data.val, class_map=data.class_map,
                        val_images=count)  # fmt: skip
    images = calibration_images(sources.train, draw_calibration(sources.train, 256, 0, sources.val))
    model = artifact.load(folder) if folder else nearest(config, network, images)
    pairs = [sources.val[i] for i in range(len(sources.val))]
    x, labels = torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])
    widths = [width for width in WIDTHS if prepared(model, width)]
    expected, rows = simulated(model, x, labels, widths)
    for runtime in runtimes:
        rows += exported(model, images[:CALIBRATION], runtime, expected, x, labels)
    print(name, *rows, sep="\n", flush=True)
    return {"images": len(x), "rounding": "learned" if folder else "nearest", "rows": rows}


def simulated(
    model: MultiBitModel, x: Tensor, labels: Tensor, widths: list[str]
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The logits at each width, and a row each for how far they move where what the first layer reads is moved."""
    expected, rows = {}, []
    first = next(iter(model.layers.values()))
    layer = model.blocks[first.block].get_submodule(first.name)  # behind the image's quantizer, where it has one
    generator = torch.Generator()

    def move(_: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0] + NOISE * x.std() * torch.randn(given[0].shape, generator=generator), *given[1:])

    for width in widths:
        with at_bits(model, width):
            expected[width] = batched(model, x)
            generator.manual_seed(0)
            hook = layer.register_forward_pre_hook(move)
            noisy = batched(model, x)
            hook.remove()
        rows.append({"backend": "simulation", "form": f"+ {NOISE:g}", "width": width,
                     **compared(expected[width], noisy, labels)})  # fmt: skip
    return expected, rows


def exported(
    model: MultiBitModel, images: Tensor, runtime: str, expected: dict[str, Tensor], x: Tensor, labels: Tensor
) -> list[dict[str, Any]]:
    """A row for each width of one export; images: for ranges and the layers by themselves."""
    backend, form = runtime.split()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        reports = write_export(model, Path(place) / form, images, list(expected), form=form, backend=backend)
        session = Session(Path(place) / form, threads=1)
        draft = Draft(model, images, list(expected))
        for width, wanted in expected.items():
            session.switch(width)
            result = batched(session, x)
            rows.append({"backend": backend, "form": form, "width": width, **compared(wanted, result, labels),
                         "layer_steps": reports[width].largest_step, "layer": reports[width].worst_layer,
                         "differing": reports[width].differing})  # fmt: skip
            if backend == "onnx" and draft.plan.watched:  # else the simulation has these roundings itself
                with at_bits(model, width), as_exported(model, draft, width) as rounded:
                    own = compared(batched(model, rounded(x)), result, labels)
                rows[-1] |= {f"{key}_as_exported": own[key] for key in ("agreement", "logit_error")}
    return rows


def nearest(config: Any, network: Any, images: Tensor) -> MultiBitModel:
    model = pipeline.quantize(pipeline.prepare(network, images, config.fold), config, network)
    calibrate(model, images, p=config.step_size.p, seed=config.seed)
    return model.eval()


@contextmanager
def as_exported(model: MultiBitModel, draft: Draft, width: str) -> Iterator[Any]:
    """The simulation with the roundings that an export adds; yields the one of images."""
    values, widths = draft.values[width], dict(draft.assignments[width].layers)

    def rounding(quantizer: str) -> Any:
        keys = ("scale", "zero_point", "low", "high")
        scale, zero, low, high = (float(values[f"{quantizer}.{key}"]) for key in keys)
        return lambda x: ((x / scale).round() + zero).clamp(low, high).sub(zero).mul(scale)

    with ExitStack() as stack:
        for name, layer in model.layers.items():
            if layer.kind == "matmul":
                continue
            module = model.blocks[layer.block].get_submodule(name)
            if f"{name}.output" in draft.plan.table.quantizers:
                own = rounding(f"{name}.output")
                stack.callback(module.register_forward_hook(lambda _, __, out, own=own: own(out)).remove)
            if f"{name}.bias_scale" in values:
                row = module.weight.widths.index(widths[name].w)
                bias = module.bias if module.biases is None else module.biases[row]
                stack.callback(bias.copy_, bias.clone())
                bias.copy_(torch.from_numpy(values[f"{name}.bias"] * values[f"{name}.bias_scale"]))
        yield rounding("image") if "image" in draft.plan.table.quantizers else lambda x: x


def prepared(model: MultiBitModel, width: str) -> bool:
    try:
        with at_bits(model, width):
            return True
    except ConfigError:
        return False


@torch.no_grad()
def batched(run: Any, x: Tensor) -> Tensor:
    return torch.cat([run(part) for part in x.split(50)])


def compared(expected: Tensor, result: Tensor, labels: Tensor) -> dict[str, float]:
    """Percent of equal top-1 classes, top-1 of both, and the logits' difference over their deviation."""
    ours, theirs = result.argmax(1), expected.argmax(1)
    error = (result - expected).square().mean().sqrt() / expected.std()
    return {
        "agreement": 100 * float((ours == theirs).float().mean()),
        "top1": 100 * float((ours == labels).float().mean()),
        "top1_simulated": 100 * float((theirs == labels).float().mean()),
        "logit_error": float(error),
    }


HEAD = f"""Exports against the simulation, one thread: the same integers, the same images. Asked of a whole network are
{AGREEMENT:g} % of equal classes and top-1 within {POINTS:g} points (the column "met"); a layer by itself, fed the
simulation's integers, differs by at most one step of its output.

What is left of a whole network has these causes: an ONNX export rounds the image, the convolutions in front of a
shortcut (to 8 bits) and the biases (to int32), which the simulation does only with `placement.deploy=onnx` (the rows
"+deploy"); "as exported" is the simulation with these roundings. And float32 sums are added in another order, which
moves values that lie at the middle between two levels to the other one: the rows "simulation + {NOISE:g}" tell how far
that alone goes, the images moved by that share of their deviation. The narrower the activations, the further a moved
value travels.

{BEFORE_AND_AFTER}

"""


def page(found: dict[str, Any]) -> str:
    return HEAD + before_and_after(found) + f"\n\n{EVERY}\n\n" + table(found)


def before_and_after(found: dict[str, Any]) -> str:
    """A line for each network and width that was measured with placement.deploy=none and onnx, in ONNX Runtime."""
    lines = ["| network (images) | width | agreement %, none | onnx | top-1: simulation, export %, none | onnx | "
             "logit error, none | onnx | simulation + noise: agreement %, onnx |",
             "|---|---|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name in (name for name in found if name + DEPLOYED in found):
        both = [{(row["backend"], row["width"]): row for row in found[key]["rows"] if row["form"] != "switchable"}
                for key in (name, name + DEPLOYED)]  # fmt: skip
        for width in (width for width in WIDTHS if all(("onnx", width) in rows for rows in both)):
            before, after = (rows["onnx", width] for rows in both)
            texts = [[f"{row['agreement']:.1f}", f"{row['top1_simulated']:.2f}, {row['top1']:.2f}",
                      f"{row['logit_error']:.4f}"] for row in (before, after)]  # fmt: skip
            cells = [
                f"{name} ({found[name]['images']})",
                width,
                *(text for pair in zip(*texts, strict=True) for text in pair),
            ]
            lines.append(f"| {' | '.join(cells)} | {both[1]['simulation', width]['agreement']:.1f} |")
    return "\n".join(lines)


def table(found: dict[str, Any]) -> str:
    lines = ["| network (images, rounding) | width | runtime | agreement % | top-1 (simulated) % | met | logit error | "
             "as exported: agreement %, logit error | layer alone: steps, integers that differ % |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, entry in found.items():
        lines += [line(f"{name} ({entry['images']}, {entry['rounding']})", row) for row in entry.get("rows", ())]
    return "\n".join(lines) + "\n"


def line(name: str, row: dict[str, Any]) -> str:
    steps, differing = row.get("layer_steps"), row.get("differing")
    alone = "-" if steps is None else f"{steps:.2f}, " + ("-" if differing is None else f"{differing:.5f}")
    keys = ("agreement_as_exported", "logit_error_as_exported")
    exported = "{:.1f}, {:.4f}".format(*(row[key] for key in keys)) if keys[0] in row else "-"
    near = abs(row["top1"] - row["top1_simulated"]) <= POINTS + 1e-4  # of percents in float32
    cells = [
        name,
        row["width"],
        f"{row['backend']} {row['form']}",
        f"{row['agreement']:.1f}",
        f"{row['top1']:.2f} ({row['top1_simulated']:.2f})",
        "yes" if row["agreement"] >= AGREEMENT - 1e-4 and near else "no",
        f"{row['logit_error']:.4f}",
        exported,
        alone,
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
