"""8-bit kernels of ONNX Runtime on full ranges: what they compute, and in what time.

    python benchmarks/integers.py
    python benchmarks/integers.py --emulate Haswell

One QLinearConv, one QGemm and one MatMulInteger on u8 activations, by the type of the weights and the session option
`session.x64quantprecision`: the largest difference from exact integer arithmetic in output steps, and processor
milliseconds (median of interleaved calls, one thread). `--emulate` adds the differences on another processor, which
qemu-x86_64 (Debian: qemu-user) emulates; its times would mean nothing and are left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RESULTS = Path(__file__).parent / "results"
WEIGHTS = {"s8 within 127": (np.int8, 127), "s8 within 63": (np.int8, 63), "u8, zero point 128": (np.uint8, 127)}
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
CALLS = 31
CHANNELS, SIZE, TOKENS, WIDTH = 128, 28, 197, 384


def session(node: Any, tensors: dict[str, np.ndarray], x: np.ndarray, output: int, option: str) -> Any:
    """One node on the input x; `tensors` are its constants."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", kind, x.shape)],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", option)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The exact sums of x (..., C) and w (C, O): doubles hold them."""
    return x.astype(np.float64) @ w.astype(np.float64)


def rounded(sums: np.ndarray, scale: float) -> np.ndarray:
    return np.clip(np.rint(sums * scale) + 128, 0, 255)


def convolution(dtype: Any, codes: np.ndarray, option: str) -> tuple[Callable[[], np.ndarray], np.ndarray, float]:
    """(call, what it should make, one step) of a 3x3 convolution of 128 channels."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, CHANNELS, SIZE, SIZE), dtype=np.uint8)
    w = codes[: CHANNELS * CHANNELS * 9].reshape(CHANNELS, CHANNELS, 3, 3)
    windows = np.lib.stride_tricks.sliding_window_view(x[0], (3, 3), (1, 2))  # (C, H', W', 3, 3)
    sums = np.einsum("chwij,ocij->ohw", windows.astype(np.float64), w.astype(np.float64))[None]
    scale = 100 / np.abs(sums).max()
    zero = np.array(128 if dtype == np.uint8 else 0, dtype)
    one, none = np.array(1, np.float32), np.array(0, np.uint8)
    tensors = {
        **{"xs": one, "xz": none, "w": (w + int(zero)).astype(dtype), "ws": np.array(scale, np.float32)},
        **{"wz": zero, "ys": one, "yz": np.array(128, np.uint8)},
    }
    node = helper.make_node("QLinearConv", ["x", *tensors], ["y"])
    made = session(node, tensors, x, TensorProto.UINT8, option)
    return lambda: made.run(None, {"x": x})[0], rounded(sums, scale), 1.0


def gemm(dtype: Any, codes: np.ndarray, option: str) -> tuple[Callable[[], np.ndarray], np.ndarray, float]:
    """(call, what it should make, one step) of a linear layer of a small transformer."""
    x = np.random.default_rng(0).integers(0, 256, (TOKENS, WIDTH), dtype=np.uint8)
    w = codes[: WIDTH * WIDTH].reshape(WIDTH, WIDTH)
    sums = product(x, w)
    scale = 100 / np.abs(sums).max()
    zero = np.array(128 if dtype == np.uint8 else 0, dtype)
    one = np.array(1, np.float32)
    tensors = {
        **{"xs": one, "xz": np.array(0, np.uint8), "w": (w + int(zero)).astype(dtype)},
        **{"ws": np.array(scale, np.float32), "wz": zero, "b": np.zeros(WIDTH, np.int32)},
        **{"ys": one, "yz": np.array(128, np.uint8)},
    }
    node = helper.make_node("QGemm", ["x", *tensors], ["y"], domain="com.microsoft")
    made = session(node, tensors, x, TensorProto.UINT8, option)
    return lambda: made.run(None, {"x": x})[0], rounded(sums, scale), 1.0


def matmul(dtype: Any, codes: np.ndarray, option: str) -> tuple[Callable[[], np.ndarray], np.ndarray, float]:
    """(call, what it should make, one step) of a product: its steps are 1/255 of its range."""
    x = np.random.default_rng(0).integers(0, 256, (TOKENS, WIDTH), dtype=np.uint8)
    w = codes[: WIDTH * WIDTH].reshape(WIDTH, WIDTH)
    zero = np.array(128 if dtype == np.uint8 else 0, dtype)
    tensors = {"w": (w + int(zero)).astype(dtype), "xz": np.array(0, np.uint8), "wz": zero}
    node = helper.make_node("MatMulInteger", ["x", *tensors], ["y"])
    made = session(node, tensors, x, TensorProto.INT32, option)
    sums = product(x, w)
    return lambda: made.run(None, {"x": x})[0], sums, float(np.ptp(sums)) / 255


def measure() -> list[dict[str, Any]]:
    """A row per operation, type of weight and option."""
    rows, calls = [], []
    for name, make in (("QLinearConv", convolution), ("QGemm", gemm), ("MatMulInteger", matmul)):
        for weights, (dtype, most) in WEIGHTS.items():
            for option in "01":
                codes = np.random.default_rng(1).integers(-most, most + 1, CHANNELS * CHANNELS * 9)
                call, expected, step = make(dtype, codes, option)
                apart = float(np.abs(call().astype(np.float64) - expected).max() / step)
                rows.append({"operation": name, "weights": weights, "option": option, "steps_off": apart})
                calls.append(call)
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(CALLS):
        for call, own in zip(calls, times, strict=True):
            started = time.process_time()
            call()
            own.append(time.process_time() - started)
    for row, own in zip(rows, times, strict=True):
        row["ms"] = 1000 * statistics.median(own)
    return rows


def processor() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    held = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return {"flags": [flag for flag in FLAGS if flag in held]}


def table(result: dict[str, Any]) -> str:
    emulated = result.get("emulated", {})
    other = f" | steps off on an emulated {emulated['processor']}" if emulated else ""
    lines = [
        "# 8-bit kernels of ONNX Runtime",
        "",
        f"`python benchmarks/integers.py{' --emulate ' + emulated['processor'] if emulated else ''}`, onnxruntime "
        f"{result['onnxruntime']}, on a processor with {', '.join(result['processor']['flags'])}. u8 activations 0 to "
        f"255; times are of processor, one thread, median of {CALLS} interleaved calls.",
        "",
        f"| operation | weights | session.x64quantprecision | steps off | ms{other} |",
        "|---|---|---|---:|---:|" + ("---:|" if emulated else ""),
    ]
    for number, row in enumerate(result["rows"]):
        cells = [row["operation"], row["weights"], row["option"], f"{row['steps_off']:.2f}", f"{row['ms']:.2f}"]
        cells += [f"{emulated['rows'][number]['steps_off']:.2f}"] if emulated else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--emulate", metavar="CPU", help="a processor of qemu-x86_64 -cpu help, such as Haswell")
    parser.add_argument("--json", action="store_true", help="print the result, write nothing")
    args = parser.parse_args()
    result: dict[str, Any] = {"processor": processor(), "onnxruntime": ort.__version__, "rows": measure()}
    if args.emulate:
        qemu = shutil.which("qemu-x86_64") or parser.error("--emulate needs qemu-x86_64 (Debian's package qemu-user)")
        command = [str(qemu), "-cpu", args.emulate, sys.executable, __file__, "--json"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        result["emulated"] = {"processor": args.emulate, "rows": json.loads(done.stdout)["rows"]}
    if args.json:
        print(json.dumps(result))
        return
    (RESULTS / "integers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "integers.md").write_text(table(result), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
