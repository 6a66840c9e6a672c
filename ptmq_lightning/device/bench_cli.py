"""`ptmq bench DIR`: how long a pass takes at each width, also in exports, and what a switch and the memory cost."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.device import bench
from ptmq_lightning.device.passes import compute
from ptmq_lightning.export.session import Session
from ptmq_lightning.runtime.errors import ConfigError, ModelError


def run(options: argparse.Namespace) -> Iterator[str]:
    """The figures line by line. Raises ModelError where the size of the images is unknown, ConfigError for an export
    that takes others."""
    torch.set_num_threads(options.threads)
    model = load(options.folder).run_in_place()
    size = model.info.input_size
    if size is None:
        raise ModelError(
            "the model does not tell the size of its images; expected info.input_size. Set it before saving."
        )
    exports = {}
    for folder in options.export:
        session = Session(folder, options.threads)
        if (other := session.info.input_size) != size:
            raise ConfigError(
                f"'{folder}' takes images of {_shown(other)}, the model of {_shown(size)}; expected an export of this "
                f"model. Export it again: ptmq export {options.folder}."
            )
        exports[f"{session.manifest['backend']} {folder}"] = session
    x = torch.randn(options.batch, *size, generator=torch.Generator().manual_seed(0))
    compute(model, x)
    held = bench.memory(model)
    yield f"batch {options.batch}, {options.threads} threads, medians of {options.rounds} interleaved rounds"
    found = bench.latency(model, x, options.rounds, exports)
    longest, whole = max(len(backend) for _, backend in found), found.get(("float", bench.EAGER))
    for (name, backend), milliseconds in found.items():
        ratio = f"  {milliseconds / whole:5.2f} of float" if whole else ""
        yield f"{name:>12}  {backend:<{longest}}  {milliseconds:9.2f} ms{ratio}"
    switch = bench.switching(model, options.rounds)
    yield f"switch of the whole model: warm {switch['warm']:.2f} ms, cold {switch['cold']:.2f} ms"
    yield f"memory: {held['stored']:,} bytes stored, {held['ready']:,} bytes of ready weights at one width"


def _shown(size: Sequence[int] | None) -> str:
    return "unknown size" if size is None else " x ".join(map(str, size))
