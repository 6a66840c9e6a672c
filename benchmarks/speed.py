"""A reconstruction step on the CPU, as a ratio to its floor.

    python benchmarks/speed.py                          # all blocks; writes benchmarks/results/speed.{json,md}
    python benchmarks/speed.py --blocks resnet20 --json -

Four blocks with random weights, each fitted by the default method at its widths: a step is what the Trainer calls in
every iteration (draw, mix, forward at each width, losses, backward, Adam). What it is compared with, in the same
process, a step of each in turn, medians of processor time:

- floor: as many plain FP32 passes of the block, forward and backward, with gradients of weights and input, as the step
  has widths, in PyTorch's usual layout, as `plain` is. A fit that learns its first step size needs all of that.
- plain: one width, written the usual way, with composed operations and PyTorch's default Adam; times the widths.
- trainer: a step as Lightning calls it, from its loader and with its hooks.

`operations`: calls of PyTorch operators in a step, which is what a GPU waits for.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import ptmq_lightning as ptmq  # isort: skip  # the torchvision cure comes first

import lightning as L
import torch
import torch.nn.functional as F
from timm.layers import set_fused_attn
from timm.models._efficientnet_blocks import InvertedResidual
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config import parts
from ptmq_lightning.models.blocks import cut
from ptmq_lightning.models.fold import fold
from ptmq_lightning.models.graph import trace
from ptmq_lightning.quant import kernels
from ptmq_lightning.quant.layers import MaskBank
from ptmq_lightning.reconstruction.block import BlockReconstruction
from ptmq_lightning.reconstruction.commit import make_trainable
from ptmq_lightning.reconstruction.correction import mean_inputs, means_kept
from ptmq_lightning.reconstruction.features import Features, run_float
from ptmq_lightning.reconstruction.fit import Fit
from ptmq_lightning.reconstruction.place import Place
from ptmq_lightning.reconstruction.units import UNITS
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.memory import keep_freed_memory

RESULTS = Path(__file__).resolve().parent / "results"
BATCH = 32


class Tokens(nn.Module):
    """(B, C, H, W) -> (B, HW, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Mean(nn.Module):
    """Over the places of a feature map, or over tokens."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: BasicBlock(128, 128), (128, 28, 28)),
    "mobilenetv2": (lambda: InvertedResidual(96, 96, exp_ratio=6.0, act_layer=nn.ReLU6), (96, 14, 14)),
    "deit_s": (lambda: nn.Sequential(Tokens(), Block(384, 6, qkv_bias=True)), (384, 14, 14)),
    "resnet20": (lambda: BasicBlock(16, 16), (16, 32, 32)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--blocks", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--repeats", type=int, default=10, help="of every step, interleaved")
    parser.add_argument("--json", default=str(RESULTS / "speed.json"), help="a file; - prints to the standard output")
    parser.add_argument(
        "--set", nargs="*", default=[], help="further keys of the configuration, as on the command line"
    )
    parser.add_argument("--compiled", action="store_true", help="as with trainer.compile=always")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every run does
    set_fused_attn(False)
    with kernels.compiled(options.compiled):
        found = [measure(name, options.repeats, options.set) for name in options.blocks]
    results = {
        "torch": torch.__version__,
        "threads": options.threads,
        "compiled": options.compiled,
        "set": options.set,
        "ratio_to_floor": {row["block"]: row["step"] / row["floor"] for row in found},
        "blocks": found,
    }
    text = json.dumps(results, indent=2) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    write_atomically(Path(options.json), text)
    write_atomically(Path(options.json).with_suffix(".md"), table(results))
    print(table(results))


def measure(name: str, repeats: int, given: list[str]) -> dict[str, Any]:
    """Median processor milliseconds of each kind of step of one block, taken in turns."""
    torch.manual_seed(0)
    fit, float_block = fit_of(name, given)
    step, widths = Step(fit), len(fit.recipe.groups.groups)
    kinds = {
        "step": step,
        "floor": float_steps(float_block, fit, widths),
        "plain": plain_steps(float_block, fit, widths),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(repeats + 2):
        for kind, run in kinds.items():
            started = time.process_time()
            run()
            times[kind].append(1e3 * (time.process_time() - started))
    medians = {kind: statistics.median(values[2:]) for kind, values in times.items()}
    return {
        "block": name,
        "widths": widths,
        **medians,
        "trainer": through_trainer(step, fit, repeats) - medians["step"],
        "operations": operations(step),
        "repeats": repeats,
    }


def fit_of(name: str, given: list[str], device: str = "cpu") -> tuple[Fit, nn.Module]:
    """The default method's fit of a block, every layer at the drawn widths; and the folded float block, on the CPU."""
    build, shape = BLOCKS[name]
    block, images = build().eval(), torch.randn(2 * BATCH, *shape)
    features = block(images[:1])
    tokens = features.dim() == 3
    head = nn.Linear(features.shape[2 if tokens else 1], 10)
    children = {"blocks": nn.Sequential(block), "pool": Mean(1) if tokens else Mean(2, 3), "head": head}
    network = nn.Sequential(OrderedDict(children)).eval()
    overrides = ["placement=none", f"recon.batch={BATCH}", f"recon.log_every={10**6}", *given]
    config = configuration(overrides)
    graph = trace(network, shape)
    fold(graph)
    folded = cut(graph, images[:2], name=name)[0].module
    model = ptmq.quantize(network, images, overrides=overrides).to(device)
    last = parts.channels_last(config.trainer, model, torch.device(device))
    images = images.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)
    recipe = parts.recipes(config, model)[0]
    unit = next(UNITS[recipe.unit].units(model.chain[0], nn.Sequential(*list(model.blocks)[1:])))
    streams = {key: images + torch.randn_like(images) / 10 for key in recipe.mixer.streams(recipe.groups)}
    inputs = Features(images, streams)
    target = run_float(unit.module, images, BATCH)
    return Fit(recipe, unit, inputs, target, images, Place(0, 1, name, 0)), folded


class Step:
    """One iteration of a fit without the Trainer."""

    def __init__(self, fit: Fit) -> None:
        block = fit.unit.module
        self.weight = weight = fit.recipe.objective.error_weight(fit)
        fit.starts = fit.nearest_errors(weight)
        means = mean_inputs(block, fit.inputs.fp, BATCH)
        make_trainable(block, fit.recipe, MaskBank(0, fit.recipe.drop, fit.target.device))
        self.kept = ExitStack()
        self.kept.enter_context(means_kept(block, means))
        self.module = BlockReconstruction(fit)
        self.module.train()
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        self.batches = iter(fit.batches(weight))
        self.index = fit.recipe.schedule.iters // 2  # the regularizer is on, as in four of five iterations

    def __call__(self) -> None:
        loss = self.module.training_step(next(self.batches), self.index)
        assert loss is not None
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def float_steps(block: nn.Module, fit: Fit, widths: int) -> Callable[[], None]:
    """The floor: as many FP32 passes as widths, with gradients of weights and input."""
    x, target = (kept[:BATCH].contiguous() for kept in (fit.inputs.fp, fit.target))

    def run() -> None:
        for _ in range(widths):
            block.zero_grad()
            F.mse_loss(block(x.detach().requires_grad_()), target).backward()

    return run


def plain_steps(block: nn.Module, fit: Fit, widths: int) -> Callable[[], None]:
    """As many iterations of a fit of one width, 4 bits, as they are usually written."""
    block = copy.deepcopy(block).requires_grad_(False)
    for path, module in list(block.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            block.set_submodule(path, PlainLayer(module))
    optimizer = torch.optim.Adam([p for p in block.parameters() if p.requires_grad], lr=1e-3)
    noisy = next(iter(fit.inputs.streams.values()))
    x, target, noisy = (kept[:BATCH].contiguous() for kept in (fit.inputs.fp, fit.target, noisy))

    def run() -> None:
        for _ in range(widths):
            optimizer.zero_grad()
            mixed = torch.where(torch.rand_like(x) < 0.5, x, noisy)
            loss = F.mse_loss(block(mixed), target)
            soft = [m.soft() for m in block.modules() if isinstance(m, PlainLayer)]
            (loss + 0.01 * sum((1 - (2 * h - 1).abs().pow(10)).sum() for h in soft)).backward()
            optimizer.step()

    return run


class PlainLayer(nn.Module):
    """A convolution or linear layer with AdaRound's soft weight, an LSQ input and QDrop's drop, of composed operations;
    products of two activations stay in float."""

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        weight = layer.weight.detach()
        shape = (-1, *[1] * (weight.dim() - 1))
        self.register_buffer("scale", weight.flatten(1).abs().amax(1).reshape(shape) / 7)
        self.register_buffer("floor", torch.floor(weight / self.scale))
        self.v = nn.Parameter(torch.randn_like(weight))
        self.step = nn.Parameter(torch.tensor(0.3))

    def soft(self) -> Tensor:
        return (torch.sigmoid(self.v) * 1.2 - 0.1).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        scaled = x / self.step
        rounded = (torch.round(scaled) - scaled).detach() + scaled
        quantized = torch.clamp(rounded + 7, 0, 15).sub(7) * self.step
        mixed = torch.where(torch.rand_like(x) < 0.5, x, quantized)
        weight = torch.clamp(self.floor + self.soft(), -8, 7) * self.scale
        if isinstance(self.layer, nn.Linear):
            return F.linear(mixed, weight, self.layer.bias)
        return self.layer._conv_forward(mixed, weight, self.layer.bias)


class Clock(L.Callback):
    """Processor seconds at the end of every iteration."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(time.process_time())


def through_trainer(step: Step, fit: Fit, repeats: int) -> float:
    """Median processor milliseconds of an iteration as Lightning runs it."""
    clock = Clock()
    fit = copy.copy(fit)
    fit.recipe = replace(fit.recipe, schedule=replace(fit.recipe.schedule, iters=2 * repeats))
    parts.trainer(configuration([]).trainer, loggers=(), callbacks=[clock]).fit(step.module, fit.batches(step.weight))
    return 1e3 * statistics.median(b - a for a, b in pairwise(clock.ends))


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return function(*args, **(kwargs or {}))


def operations(run: Callable[[], None]) -> int:
    """Calls of PyTorch operators in a step that is not compiled, and not cut into pieces for a CPU's cache."""
    whole = mock.patch.object(kernels, "pieces", lambda *whole: [whole])
    with kernels.compiled(False), whole, _Count() as counted:
        run()
    return counted.calls


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    lines = [
        f"torch {results['torch']}, {results['threads']} thread, {'compiled, ' * results['compiled']}keys: "
        f"{' '.join(results['set']) or 'the defaults'}. "
        "Processor milliseconds, medians.",
        "",
        "| block | widths | step | floor | step / floor | plain loop, as many iterations | step / plain | Trainer adds "
        "| operations |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in results["blocks"]:
        step, floor, plain = row["step"], row["floor"], row["plain"]
        lines.append(
            f"| {row['block']} | {row['widths']} | {step:.0f} | {floor:.0f} | {step / floor:.2f} | {plain:.0f} | "
            f"{step / plain:.2f} | {row['trainer']:.1f} | {row['operations']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
