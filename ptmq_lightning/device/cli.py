"""The command for those who just received an artifact: what it is, whether it is whole, what it says, how fast it runs.

    ptmq info DIR
    ptmq predict DIR cat.jpg dog.jpg --bits 4
    ptmq bench DIR --batch 1 --threads 1 --export DIR-onnx
    ptmq verify DIR
    ptmq allocate DIR --images FOLDER --size-mb 6
    ptmq export DIR --images FOLDER --bits w8a8,size_6mb
    ptmq demo DIR-onnx --images FOLDER
    ptmq push DIR OWNER/NAME
    ptmq pull DIR OWNER/NAME

Exit codes: 0, 1 for an artifact or picture that cannot be used, 2 for a wrong use of the command, 130 interrupted
(docs/failures.md). One line says why.
A subcommand loads what it needs when it runs: neither --help nor info waits for torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ptmq_lightning.device import arguments
from ptmq_lightning.device.allocate_arguments import of_allocate
from ptmq_lightning.runtime.checked import printable
from ptmq_lightning.runtime.errors import INTERRUPTED, ConfigError, PTMQError, of_system

Lines = Iterator[str]


@dataclass(frozen=True)
class Command:
    """A subcommand: a line of help, the arguments behind DIR, the lines it prints, and what DIR is."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Lines]
    folder: str = "the folder that save() wrote"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit code."""
    options = _parsed(sys.argv[1:] if arguments is None else arguments)
    try:
        for line in COMMANDS[options.command].run(options):
            print(printable(line), flush=True)
    except PTMQError as error:
        print(printable(f"ptmq: {error}"), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 1
    except (OSError, MemoryError) as error:
        print(printable(f"ptmq: {of_system(error)}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ptmq: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; `ptmq` alone and `ptmq help` show all commands."""
    parser = _parser()
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(2, "\nptmq: error: the following arguments are required: COMMAND\n")
    return parser.parse_args(["--help"] if list(words) == ["help"] else words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ptmq", description="Look at, check and run a multi-bit model.")
    parser.add_argument("--version", action="version", version=f"ptmq-lightning {version('ptmq-lightning')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.help, description=command.help)
        sub.add_argument("folder", metavar="DIR", type=Path, help=command.folder)
        command.arguments(sub)
    return parser


def _info(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.device.info import info

    return info(options.folder, layers=options.layers)


def _predict(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.device.predict import predict

    return predict(options)


def _bench(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.device.bench_cli import run

    return run(options)


def _allocate(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.device.allocate_cli import run

    return run(options)


def _export(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.device.export_cli import run

    return run(options)


def _demo(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.device.demo import run

    return run(options)


def _verify(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.artifact.verify import verify

    return (f"ok  {line}" for line in verify(options.folder))


def _push(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.artifact.hub import push

    yield f"pushed  {push(options.folder, options.repo, private=options.private)}"


def _pull(options: argparse.Namespace) -> Lines:
    from ptmq_lightning.artifact.hub import pull

    pull(options.repo, options.folder, revision=options.revision)
    yield f"pulled  {options.repo} into {options.folder}"


COMMANDS = {
    "info": Command("sizes, widths, layers and accuracy", arguments.of_info, _info),
    "predict": Command(
        "classes of pictures at one width", arguments.of_predict, _predict, "what save() wrote, or an export"
    ),
    "bench": Command("latency of each width, also of its exports; switch time, memory", arguments.of_bench, _bench),
    "allocate": Command("widths per layer for a size, a compute, an accuracy", of_allocate, _allocate),
    "export": Command("write it for ONNX Runtime or OpenVINO, and check it", arguments.of_export, _export),
    "demo": Command("an export of form multi as a page with a slider", arguments.of_demo, _demo, "an export"),
    "push": Command("upload it, with a card, to the Hugging Face hub", arguments.of_push, _push),
    "pull": Command("download it from the Hugging Face hub", arguments.of_pull, _pull, "where it goes"),
    "verify": Command("hashes, decoding, ranges at every width", arguments.none, _verify),
}

if __name__ == "__main__":
    sys.exit(main())
