"""What an export of one file for every width tells beside it: how to choose, what opening it costs, a page to read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptmq_lightning.export.onnx_multi import selector

if TYPE_CHECKING:
    from ptmq_lightning.export.draft import Draft

# In a process of its own, so that what is measured is the session and nothing before it.
_OPEN = """
import ctypes, json, sys, time
import onnxruntime as ort
def memory(key):
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
    except OSError:
        return None
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
before, start = memory("VmRSS"), time.process_time()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.process_time() - start
def grown(key):
    return None if before is None else memory(key) - before
held, peak = grown("VmRSS"), grown("VmHWM")
try:
    ctypes.CDLL(None).malloc_trim(0)
except (AttributeError, OSError, TypeError):
    pass
print(json.dumps([seconds, held, peak, grown("VmRSS")]))
"""


def told(draft: Draft, file: Path) -> dict[str, Any]:
    """For the manifest: the input that chooses and its values, the bytes of a file of each width alone, and what
    opening this one costs."""
    name, values = selector(draft.model, draft.assignments)
    alone = {width: len(draft.static(width).SerializeToString()) for width in draft.assignments}
    return {"choice": {"input": name, "values": values}, "alone": alone, "opening": opening(file)}


def opening(file: Path) -> dict[str, float | None]:
    """Processor seconds, and bytes held, at the peak and held behind glibc's malloc_trim(0), which `Session` calls, of
    opening a file in ONNX Runtime on one thread; bytes None where the system does not tell."""
    made = subprocess.run([sys.executable, "-c", _OPEN, str(file)], capture_output=True, check=True, text=True)
    return dict(zip(("seconds", "held", "peak", "trimmed"), json.loads(made.stdout), strict=True))


def opening_line(manifest: Mapping[str, Any]) -> str:
    """What opening costs, in words."""
    cost, widths = manifest["opening"], len(manifest["assignments"])
    line = f"opening it takes {cost['seconds']:.2f} s of one processor core ({cost['seconds'] / widths:.2f} s a width)"
    if cost["held"] is None:
        return line
    held, peak, trimmed = (cost[key] / 1e6 for key in ("held", "peak", "trimmed"))
    return (
        f"{line} and {held:.0f} MB ({held / widths:.0f} MB a width; {peak:.0f} MB at the peak), of which {trimmed:.0f} "
        f"MB stay where the C library is told to hand back what is free (malloc_trim(0) of glibc, as Session does)"
    )


def readme(manifest: Mapping[str, Any], size: int) -> str:
    """A page for who gets the folder; size: bytes of the file."""
    choice, shape = manifest["choice"], ", ".join(map(str, manifest["image_shape"]))
    rows = [
        f"| {name} | {value} | {manifest['alone'][name]:,} | {manifest['report'][name]['agreement']:.1f} |"
        for name, value in choice["values"].items()
    ]
    value = next(iter(choice["values"].values()))
    return f"""# One ONNX file for every width

`model.onnx` ({size:,} bytes) runs in any current ONNX Runtime, in any language, without code of ours. Inputs:
`images`, float32 (batch, {shape}), preprocessed as `export.json` says under `info`, and `{choice["input"]}`, an int64
scalar that chooses the width. Output: `logits`. A value that is not in this table is an error.

| width | `{choice["input"]}` | bytes of a file of this width alone | top-1 as simulated, % |
| --- | ---: | ---: | ---: |
{chr(10).join(rows)}

On the machine that wrote it, {opening_line(manifest)}.
A switch is another value of the input, and nothing else.

    session = onnxruntime.InferenceSession("model.onnx")                                         # Python
    logits, = session.run(None, {{"images": images, "{choice["input"]}": numpy.array({value})}})

    const session = await ort.InferenceSession.create("model.onnx")                              // JavaScript
    const {choice["input"]} = new ort.Tensor("int64", [{value}n], [])
    const {{logits}} = await session.run({{images, {choice["input"]}}})
"""
