"""Which families of timm can be quantized, saved and exported: the smallest network of each, random weights, seed 0.

    python benchmarks/families.py
    python benchmarks/families.py --only efficientnet_b0 hrnet_w18_small     (measured anew)

Each family runs in a process of its own with a time limit, one thread; what is already in the results is kept, so that
a run that was stopped goes on. A family is traced, folded, cut, quantized to w4a4 and w8a8 by rounding to nearest,
calibrated on a few random images, saved, loaded, compared bit for bit at both pairs, and exported at w8a8.
Results: benchmarks/results/families.json, .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.artifact import artifact
from ptmq_lightning.export.export import write_export
from ptmq_lightning.models import blocks, fold, graph, zoo
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.steps import StepSize, calibrate
from ptmq_lightning.report.record import write_atomically
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.model import MultiBitModel, weights_of
from ptmq_lightning.runtime.spec import BitWidth

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES, LIMIT = 4, 420  # calibration images; seconds for one family
PAIRS = tuple(BitWidth.parse(pair) for pair in ("w4a4", "w8a8"))
STEPS = StepSize("nested", anchor=8, p=2.0)  # one search per weight instead of two
_BY_SIZE = {
    160: """test_byobnet test_convnext test_convnext2 test_convnext3 test_efficientnet test_efficientnet_evos
        test_efficientnet_gn test_efficientnet_ln test_mambaout test_nfnet test_resnet test_vit test_vit2 test_vit3
        test_vit4""",
    64: """resnet18 resnet10t resnest14d res2net50_14w_8s seresnet18 skresnet18 resnetv2_18 regnetx_002 regnety_002
        densenet121 dpn48b dla46_c vgg11 hrnet_w18_small selecsls42b cs3darknet_focus_s cspnext_tiny vovnet39a
        inception_next_atto xception41 nf_regnet_b0 repvgg_a0 mobileone_s0 eca_botnext26ts_256 efficientnet_b0
        mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small_035 semnasnet_050 tinynet_e lcnet_035 ghostnet_050
        repghostnet_050 hardcorenas_a rexnetr_100 mixnet_s tf_efficientnet_b0 starnet_s050 edgenext_xx_small
        convnext_atto convnextv2_atto mobilevit_xxs mobilevitv2_050 repvit_m0_9 efficientvit_b0 poolformer_s12 pvt_v2_b0
        coat_lite_tiny fasternet_t0 vit_tiny_patch16_224 deit_tiny_patch16_224 cait_xxs24_224 resmlp_12_224
        mixer_s32_224 gmlp_ti16_224 convit_tiny xcit_nano_12_p16_224""",
    128: "gcvit_xxtiny efficientformerv2_s0 swiftformer_xs",
    224: """tnt_s_legacy_patch16_224 levit_128s pit_ti_224 efficientformer_l1 efficientvit_m0 fastvit_t8
        vit_tiny_r_s16_p8_224 eva02_tiny_patch14_224""",
    240: "crossvit_9_240",
}
FAMILIES: dict[str, int] = {name: size for size, names in _BY_SIZE.items() for name in names.split()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), metavar="NAME", help="these, measured anew")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--one", choices=list(FAMILIES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.one, FAMILIES[options.one])))
        return
    file = options.results / "families.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for name in options.only or [name for name in FAMILIES if name not in found]:
        found[name] = in_a_process(name)
        print(name, found[name], flush=True)
        ordered = {known: found[known] for known in FAMILIES if known in found}
        write_atomically(file, json.dumps(ordered, indent=1) + "\n")
        write_atomically(file.with_suffix(".md"), table(ordered))


def in_a_process(name: str) -> dict[str, Any]:
    """What `measure` found, or why it found nothing."""
    command, started = [sys.executable, __file__, "--one", name], time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"reason": f"not done in {LIMIT} s"}
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["no word"]
    result: dict[str, Any] = json.loads(lines[-1]) if done.returncode == 0 else {"reason": lines[-1][:300]}
    return result | {"seconds": round(time.perf_counter() - started, 1)}


def measure(name: str, size: int) -> dict[str, Any]:
    """A row of the table; what fails leaves its reason, and the later columns out."""
    row: dict[str, Any] = {"size": size}
    try:
        network = build(name, size)
        x = torch.randn(IMAGES, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
        model = quantized(network.module, x, row)
        row |= saved(model, x)
        row |= exported(model, x)
    except Exception as error:  # whatever it is, it is what the table tells
        row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
    return row


def build(name: str, size: int) -> zoo.Network:
    """Random weights, but none that hide an operation: constant parameters and statistics are drawn too."""
    torch.manual_seed(0)
    common: dict[str, Any] = {"pretrained": False, "num_classes": 10}
    try:
        network = zoo.build(name, **common, img_size=size)
    except ModelError:  # it takes images of any size
        network = zoo.build(name, **common, preprocessing={"input_size": [3, size, size]})
    with torch.no_grad():
        for key, value in (*network.module.named_parameters(), *network.module.named_buffers()):
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point() and value.ndim and value.numel() > 1 and value.min() == value.max():
                known = float(value.flatten()[0])
                small = abs(known) < 0.05
                value.normal_(std=0.1) if small else value.uniform_(0.5, 1.5).mul_(known)
    return network


def quantized(module: nn.Module, x: Tensor, row: dict[str, Any]) -> MultiBitModel:
    gm = graph.trace(module, tuple(x.shape[1:]))
    row["traced"] = True
    fold.fold(gm)
    chain = blocks.cut(gm, x[:2])
    with torch.no_grad():
        wanted, made = module(x), gm(x)
    row["fold_error"] = float((made - wanted).norm() / wanted.norm())
    layers = {path for path, part in module.named_modules() if isinstance(part, (nn.modules.conv._ConvNd, nn.Linear))}
    row["all_layers"] = len(layers)
    model = insert(chain, PAIRS, Placement(), STEPS)
    called = {name for name, info in model.layers.items() if info.kind != "matmul"}
    row["quantized_layers"], row["products"] = len(called), len(model.layers) - len(called)
    row["hidden"] = blocks.opaque_layers(gm, module)
    calibrate(model, x, p=2.0)
    return model.eval()


def saved(model: MultiBitModel, x: Tensor) -> dict[str, Any]:
    """Whether the loaded model has the same codes and logits at both pairs."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = artifact.load(artifact.save(model, Path(folder) / "model"))
    stored = dict(weights_of(loaded))
    equal = all(torch.equal(stored[key].at(b), w.at(b)) for key, w in weights_of(model) for b in w.widths)
    for pair in (*PAIRS, PAIRS[0]):
        model.switch(pair)
        loaded.switch(pair)
        with torch.no_grad():
            equal = equal and torch.equal(model(x), loaded(x))
    return {"saved": True, "equal": equal}


def exported(model: MultiBitModel, x: Tensor) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = write_export(model, Path(folder) / "out", x, ["w8a8"])["w8a8"]
    return {
        "exported": True,
        "largest_step": report.largest_step,
        "agreement": report.agreement,
        "logit_error": report.logit_error,
    }


HEAD = """# Families of timm

The smallest network of each family with random weights: which are traced, quantized, saved (and load bit for bit equal)
and exported to ONNX at w8a8. Layers: quantized of all convolutions and linear layers that the network has, and matrix
products of two activations. Fold error: the difference of the folded, cut chain from the network, over the network's
output (2-norms). Steps: the largest difference of one layer's integers between export and simulation.
Made by `python benchmarks/families.py`.

"""
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "pixels": lambda row: str(row.get("size", "-")),
    "traced": lambda row: "yes" if row.get("traced") else "no",
    "layers (+ products)": lambda row: (
        f"{row['quantized_layers']} of {row['all_layers']} (+ {row['products']})" if "quantized_layers" in row else "-"
    ),
    "fold error": lambda row: f"{row['fold_error']:.1e}" if "fold_error" in row else "-",
    "saved": lambda row: "bit-equal" if row.get("equal") else "yes" if row.get("saved") else "no",
    "exported": lambda row: "yes" if row.get("exported") else "no",
    "steps": lambda row: "-" if row.get("largest_step") is None else f"{row['largest_step']:.2g}",
    "same class %": lambda row: f"{row['agreement']:.0f}" if "agreement" in row else "-",
    "why not": lambda row: row.get("reason", "").replace("|", "/"),
}


def table(found: dict[str, dict[str, Any]]) -> str:
    counted = {
        key: sum(bool(row.get(key)) for row in found.values()) for key in ("traced", "saved", "equal", "exported")
    }
    head = (
        f"{len(found)} families: {counted['traced']} traced, {counted['saved']} saved, {counted['equal']} of them "
        f"bit-equal after loading, {counted['exported']} exported.\n\n"
    )
    lines = ["| network | " + " | ".join(COLUMNS) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    for name, row in found.items():
        lines.append(f"| {name} | " + " | ".join(cell(row) for cell in COLUMNS.values()) + " |")
    return HEAD + head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
