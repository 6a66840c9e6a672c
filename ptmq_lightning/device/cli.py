"""The command for those who just received an artifact: what it is, whether it is whole, what it says, how fast it runs.

    ptmq info DIR
    ptmq predict DIR cat.jpg dog.jpg --bits 4
    ptmq bench DIR --batch 1 --threads 1 --export DIR-onnx
    ptmq verify DIR
    ptmq export DIR --images FOLDER --bits w8a8,w4a8

Exit codes: 0, 1 for an artifact or picture that cannot be used, 2 for a wrong use of the command. One line says why.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.artifact.manifest import MANIFEST, TENSORS, read_manifest
from ptmq_lightning.artifact.packing import bits_per_weight
from ptmq_lightning.artifact.verify import verify
from ptmq_lightning.device import bench, export_cli
from ptmq_lightning.device.pictures import open_picture
from ptmq_lightning.export.session import Session
from ptmq_lightning.runtime.errors import ArtifactError, ConfigError, ModelError, PTMQError
from ptmq_lightning.runtime.spec import BitWidth


@dataclass(frozen=True)
class Command:
    """A subcommand: a line of help, the arguments behind DIR, and the lines it prints."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Iterator[str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit code."""
    options = _parser().parse_args(arguments)
    try:
        for line in COMMANDS[options.command].run(options):
            print(line, flush=True)
    except PTMQError as error:
        print(f"ptmq: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ptmq", description="Look at, check and run a multi-bit model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.add_argument("folder", metavar="DIR", type=Path, help="the folder that save() wrote")
        command.arguments(sub)
    return parser


def info(options: argparse.Namespace) -> Iterator[str]:
    """Reads the manifest and the names of the tensors alone: what they describe may be no network that loads."""
    manifest = read_manifest(options.folder)
    try:
        yield from _info_lines(options, manifest)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ConfigError) as error:
        raise ArtifactError(
            f"cannot tell what '{options.folder}' is; {MANIFEST} describes no network ({type(error).__name__}: "
            f"{error}); expected what save() writes. Save the model again."
        ) from error


def _info_lines(options: argparse.Namespace, manifest: dict[str, Any]) -> Iterator[str]:
    about, layers = manifest["info"], manifest["layers"]
    specs = {
        path: module["weight"]
        for block in manifest["blocks"]
        for path, module in block["modules"].items()
        if "weight" in module
    }
    weights = sum(torch.Size(spec["shape"]).numel() for spec in specs.values())
    sizes = [(options.folder / name).stat().st_size for name in (TENSORS, MANIFEST)]
    packings = sorted({spec["packing"] for spec in specs.values()})
    yield f"network   {about.get('name', 'unnamed')} ({about.get('source', 'source unknown')})"
    yield f"weights   {weights:,} in {len(specs)} layers, {len(layers)} rows in the layer table"
    yield (
        f"size      {sum(sizes):,} bytes ({TENSORS} {sizes[0]:,}, {MANIFEST} {sizes[1]:,}), "
        f"{8 * sum(sizes) / max(weights, 1):.2f} bits per weight for all widths; float32 {4 * weights:,}"
    )
    kept = "with" if packings == ["latent"] else "without"
    yield f"packing   {' and '.join(packings)}, {kept} the float network; format {manifest['version']}"
    yield f"widths    {' '.join(str(BitWidth.parse(pair)) for pair in manifest['pairs'])}"
    if manifest["assignments"]:
        yield f"named     {' '.join(manifest['assignments'])}"
    yield from _accuracy_table(about)
    if options.layers:
        yield ""
        yield f"{'layer':<32} {'kind':<7} {'shape':<18} {'bits':>4}  pinned"
        for row in layers:
            bits = bits_per_weight(specs[row["name"]]) if row["name"] in specs else "-"
            pins = "".join(f"{side}{row[f'pin_{side}']}" for side in "wa" if row[f"pin_{side}"])
            shape = "x".join(map(str, row["weight_shape"] or ())) or "-"
            yield f"{row['name']:<32} {row['kind']:<7} {shape:<18} {bits:>4}  {pins or '-'}"


def _accuracy_table(about: dict[str, Any]) -> Iterator[str]:
    accuracy = about.get("accuracy") or {}
    if not accuracy.get("rows"):
        yield "accuracy  not stored"
        return
    fp = accuracy.get("fp") or {}
    data = f" of {about['data']}" if "data" in about else ""
    yield f"accuracy  on {accuracy.get('images', '?')} images{data}, percent"
    yield f"{'':>10}  {'top1':>6}  {'top5':>6}  {'agree':>6}"
    yield f"{'float':>10}  {_cell(fp.get('top1'))}  {_cell(fp.get('top5'))}"
    for row in accuracy["rows"]:
        yield f"{row['config']:>10}  " + "  ".join(_cell(row.get(key)) for key in ("top1", "top5", "agreement"))


def _cell(value: float | None) -> str:
    return f"{'-':>6}" if value is None else f"{value:6.2f}"


def predict(options: argparse.Namespace) -> Iterator[str]:
    model = load(options.folder).run_in_place()
    if options.bits is not None:
        model.switch(options.bits)
    preprocessing = model.preprocessing()
    for path in options.images:
        with torch.inference_mode():
            logits = model(open_picture(path, preprocessing).unsqueeze(0))[0]  # (classes,)
        best = logits.softmax(0).topk(min(options.top, len(logits)))
        found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        yield f"{path}: " + ", ".join(f"class {index} {100 * share:.1f} %" for index, share in found)


def run_bench(options: argparse.Namespace) -> Iterator[str]:
    torch.set_num_threads(options.threads)
    model = load(options.folder).run_in_place()
    size = model.preprocessing().get("input_size")
    if size is None:
        raise ModelError(
            "the model does not tell the size of its images; expected 'input_size' in info['preprocessing']. Set it "
            "before saving."
        )
    exports = {}
    for folder in options.export:
        session = Session(folder, options.threads)
        if (other := session.preprocessing().get("input_size")) != size:
            raise ConfigError(
                f"'{folder}' takes images of {other}, the model of {size}; expected an export of this model. Export it "
                f"again: ptmq export {options.folder}."
            )
        exports[f"{session.manifest['backend']} {folder}"] = session
    x = torch.randn(options.batch, *size, generator=torch.Generator().manual_seed(0))
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


def run_verify(options: argparse.Namespace) -> Iterator[str]:
    for line in verify(options.folder):
        yield f"ok  {line}"


def _which(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", action="store_true", help="a row for each layer")


def _predict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture files")
    parser.add_argument("--bits", type=_which, help="4, w4a8 or a named assignment (default: as loaded)")
    parser.add_argument("--top", type=export_cli.positive, default=5, help="classes to print (5)")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    for name, default in (("batch", 1), ("threads", 1), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=export_cli.positive, default=default, help=f"({default})")
    exports = "an export of it (ptmq export), timed in the same rounds; may be given again"
    parser.add_argument("--export", metavar="EXPORT_DIR", type=Path, action="append", default=[], help=exports)


COMMANDS = {
    "info": Command("sizes, widths, layers and accuracy", _info_arguments, info),
    "predict": Command("classes of pictures at one width", _predict_arguments, predict),
    "bench": Command("latency of each width, also of its exports; switch time, memory", _bench_arguments, run_bench),
    "export": Command("write it for ONNX Runtime or OpenVINO, and check it", export_cli.arguments, export_cli.run),
    "verify": Command("hashes, decoding, ranges at every width", lambda parser: None, run_verify),
}

if __name__ == "__main__":
    sys.exit(main())
