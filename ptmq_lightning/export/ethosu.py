"""Arm Ethos-U: a .tflite of int8 tensors, compiled by Arm's Vela, whose encoding of weights shrinks with their bits.

The folder holds per width the .tflite, which LiteRT's interpreter checks, and NAME_vela.tflite for the device; beside
them what the compiler estimates: networks.csv, a row per width, and prices.csv, the bytes and cycles of each layer at
each pair. Nothing was run on a device: the cycles are those of the compiler's model of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptmq_lightning.export.litert import LiteRt
from ptmq_lightning.export.targets import TARGETS

if TYPE_CHECKING:
    from ptmq_lightning.export.draft import Draft
    from ptmq_lightning.export.support import Support

PRICES, NETWORKS = "prices.csv", "networks.csv"


@TARGETS.register("ethosu_static")
class EthosU(LiteRt):
    backend = "ethosu"
    writers = ("flatbuffers", "ethosu")
    devices = (
        "ethos-u55-256", "ethos-u55-128", "ethos-u55-64", "ethos-u55-32", "ethos-u65-256", "ethos-u65-512",
        "ethos-u85-128", "ethos-u85-256", "ethos-u85-512", "ethos-u85-1024", "ethos-u85-2048",
    )  # fmt: skip

    def support(self) -> Support:
        from ptmq_lightning.export.litert_ops import OPERATIONS
        from ptmq_lightning.export.support import CONV, DEPTHWISE, ITSELF, LINEAR, Support

        return Support(dict.fromkeys((CONV, DEPTHWISE, LINEAR), ITSELF), frozenset(OPERATIONS))

    def network(self, draft: Draft, name: str) -> Any:
        from ptmq_lightning.export.litert_convert import LiteRtConverter

        return LiteRtConverter(draft, name, floats=False, native=False).network()

    def beside(self, draft: Draft, folder: Path, network: Any) -> list[str]:
        from ptmq_lightning.export.ethosu_vela import compiled, write_networks, write_prices

        assert self.device is not None
        found = {name: compiled(folder / file, self.device) for name, file in self.files(draft).items()}
        write_networks(folder / NETWORKS, found, self.device)
        write_prices(folder / PRICES, found, draft.assignments, list(draft.plan.table.layers))
        return []

    def notes(self, folder: Path) -> list[str]:
        from ptmq_lightning.export.ethosu_vela import read_rows

        rows = read_rows(folder / NETWORKS)
        lines = [f"estimates of the Vela compiler for {rows[0]['device']}, nothing was run on one; per layer: {PRICES}"]
        lines += [
            f"{row['width']}: {int(row['file_bytes']):,} bytes, of them {int(row['weight_bytes']):,} weights; "
            f"SRAM {int(row['sram_bytes']):,} bytes; {int(row['cycles']):,} cycles; {row['cpu_operators']} operators "
            f"on the CPU"
            for row in rows
        ]
        return lines
