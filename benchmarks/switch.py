"""Whole-model switch and latency of the simulated integer network, ResNet-18 and DeiT-S at 224 px, random weights.

    python benchmarks/switch.py
    python benchmarks/switch.py --networks resnet18 --rounds 30 --batch 8

All cases of a part take turns in one process of one thread, and the medians of its processor time are compared (which
other programs on the machine disturb less than the time on the wall). Results go to benchmarks/results/switch.json and
switch.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_models import WIDTHS, with_float
from torch import Tensor, nn

from ptmq_lightning.artifact.artifact import load, save
from ptmq_lightning.device.bench import interleaved
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.cache import WeightCache
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel, weights_of

ROOT = Path(__file__).resolve().parent.parent
CLOCK = time.process_time
FILE = ROOT / "benchmarks" / "results" / "switch.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "deit_s"])
    parser.add_argument("--rounds", type=int, default=20, help="a quarter of it for passes of batches over 8")
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in options.networks:
        model, network = with_float(name, gelu="table")
        passes = options.rounds if options.batch <= 8 else max(3, options.rounds // 4)
        with tempfile.TemporaryDirectory() as folder:
            nested = load(save(model, Path(folder) / "nested", "nested"))
            latent = load(save(model, Path(folder) / "latent", "latent"))
        found[name] = found.get(name, {}) | {
            "switch": switches(latent, nested, network, options.rounds),
            f"batch {options.batch}": latencies(latent, network, options.batch, passes),
            "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread",
            "rounds": options.rounds,
        }
        write_atomically(FILE, json.dumps(found, indent=1) + "\n")
        write_atomically(FILE.with_suffix(".md"), report(found))
    print(report(found))


def switches(latent: MultiBitModel, nested: MultiBitModel, network: nn.Module, rounds: int) -> dict[str, float]:
    """Milliseconds. Codes are those of 4 bits; copies go into new memory, as the weights of a cold switch do."""
    codes = [weight.code(4) if 4 in weight.widths else weight.code(8) for weight in weights(latent)]
    ready = [code.float() for code in codes]
    floats = [m.weight.detach() for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    cases: dict[str, Callable[[], Any]] = {
        "warm": warm(latent),
        "cold, latent": cold(latent),
        "cold, nested": cold(nested),
        "copy of the codes (int8)": lambda: [code.clone() for code in codes],
        "codes to float32": lambda: [code.float() for code in codes],
        "copy of the weights (float32)": lambda: [weight.clone() for weight in ready],
        "requantize from FP32, steps known": known(floats),
        "requantize from FP32, steps from the largest weights": lambda: [requantize(w, 4) for w in floats],
    }
    return interleaved(cases, rounds, CLOCK)


def weights(model: MultiBitModel) -> list[Any]:
    return [weight for block in model.blocks for _, weight in weights_of(block)]


def warm(model: MultiBitModel) -> Callable[[], float]:
    """All seven widths are ready; the switch goes round through them."""
    turn = [0]

    def case() -> float:
        if not turn[0]:
            for bits in WIDTHS:
                model.switch(bits)
        turn[0] += 1
        start = CLOCK()
        model.switch(WIDTHS[turn[0] % len(WIDTHS)])
        return CLOCK() - start

    model.cache.limit = 1 << 40
    return case


def cold(model: MultiBitModel) -> Callable[[], float]:
    other = model.handle()  # its empty cache is not the warm one

    def case() -> float:
        other.cache = WeightCache()
        other.switch(8)
        other.cache = WeightCache()
        start = CLOCK()
        other.switch(4)
        return CLOCK() - start

    return case


def known(floats: list[Tensor]) -> Callable[[], Any]:
    steps = [w.abs().flatten(1).amax(dim=1).clamp_min(grid.EPS) / 7.5 for w in floats]
    return lambda: [requantize(w, 4, step) for w, step in zip(floats, steps, strict=True)]


def requantize(w: Tensor, bits: int, step: Tensor | None = None) -> Tensor:
    """Nearest rounding of a float weight (O, ...), the steps (O,) by its largest values where they are not given."""
    low, high = grid.limits(bits)
    if step is None:
        step = w.abs().flatten(1).amax(dim=1).clamp_min(grid.EPS) / ((2**bits - 1) / 2)
    s = grid.per_channel(step, w)
    return torch.round(w / s).clamp_(low, high).mul_(s)


def latencies(model: MultiBitModel, network: nn.Module, batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a pass at W4A4 beside the folded float network, eager."""
    x = torch.randn(batch, 3, 224, 224)
    plain, lean = model.handle(), model.handle().run_in_place()
    for each in (plain, lean):
        each.switch(4)
    with torch.inference_mode():
        return interleaved(
            {
                "float": lambda: network(x),
                "simulated, in place": lambda: lean(x),
                "simulated": lambda: plain(x),
                "simulated, requantized at each pass": lambda: requantized(plain, x),
            },
            rounds,
            CLOCK,
        )


def requantized(model: MultiBitModel, x: Tensor) -> Tensor:
    """A pass that derives every weight anew, as one without prepared weights does."""
    for weight in weights(model):
        weight.use(weight.made())
    return model(x)


def report(found: dict[str, Any]) -> str:
    text = [
        "Milliseconds of processor time, medians of interleaved rounds in one process.",
        "",
        f"| | {' | '.join(found)} |",
        "|---|" + "---|" * len(found),
    ]
    rows = list(next(iter(found.values()))["switch"])
    for row in rows:
        cells = (f"{each['switch'][row]:.2f}" for each in found.values())
        text.append(f"| switch: {row} | {' | '.join(cells)} |")
    for part in sorted({key for each in found.values() for key in each if key.startswith("batch")}):
        held = {name: each[part] for name, each in found.items() if part in each}
        for row in next(iter(held.values())):
            cells = (
                f"{held[n][row]:.1f} ({held[n][row] / held[n]['float']:.2f}x)" if n in held else "-" for n in found
            )
            text.append(f"| {part}: {row} | {' | '.join(cells)} |")
    text += [
        "",
        "A warm switch swaps references (asked: 1 ms). A cold one writes the float32 weights that PyTorch multiplies "
        f'with: {over(found, "codes to float32")} of "codes to float32" (asked: 3), '
        f"{over(found, 'copy of the codes (int8)')} of a copy of the bytes alone.",
        "",
        f"{next(iter(found.values()))['machine']}.",
    ]
    return "\n".join(text) + "\n"


def over(found: dict[str, Any], row: str) -> str:
    """The cold switch from the latent over another row, network by network."""
    return " and ".join(f"{each['switch']['cold, latent'] / each['switch'][row]:.1f}x" for each in found.values())


if __name__ == "__main__":
    main()
