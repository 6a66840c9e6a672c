"""What the options are worth: method.bias_correction after the fit and the losses fim and aph, each on and off.

    PTMQ_DATA=DIR python benchmarks/options.py                     # every case, on the CPU
    PTMQ_DATA=DIR python benchmarks/options.py --cases resnet20_learned

One run of train.py a row; results go to benchmarks/results/options.json row by row and, as a table, to options.md. A
row that is there already, of a command that means the same, is not run again. placement.gelu on and off on a
transformer: rows of accuracy.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from accuracy import meaning_of

from ptmq_lightning.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "options.json"
RESNET20 = ["experiment=cifar_resnet20", "data.calibration_images=512", "bits.evaluate=[w2a4,w3a3,w4a4,w6a6,w8a8]"]
CORRECTION = {f"method.bias_correction={when}": [f"method.bias_correction={when}"] for when in ("none", "after")}
FORMER = ["method.bias_correction=none", "loss.relative=false", "rounding.planes=[[2],[3],[4,5,6,7,8]]"]  # the default
CASES: dict[str, tuple[list[str], dict[str, list[str]]]] = {  # what all rows share, and what each adds
    "resnet20": ([*RESNET20, "rounding=nearest"], CORRECTION),
    "resnet20_learned": (
        [*RESNET20, "recon.iters=50", *FORMER],
        {
            "loss=gd_direct": [],
            "loss=fim": ["loss=fim"],
            "loss=aph": ["loss=aph"],
            "method.bias_correction=after": ["method.bias_correction=after"],
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    for case in parser.parse_args().cases:
        shared, rows = CASES[case]
        for option, added in rows.items():
            found = json.loads(FILE.read_text()) if FILE.exists() else {}
            command = [*shared, *added]
            meaning = meaning_of(tuple(command))
            if found.get(case, {}).get(option, {}).get("meaning") != meaning:
                result = {"command": command, "meaning": meaning, **measure(command)}
                found.setdefault(case, {})[option] = result
                write_atomically(FILE, json.dumps(found, indent=2) + "\n")
            write_atomically(FILE.with_suffix(".md"), table(found))
            print(case, option, found[case][option], flush=True)


def measure(command: list[str]) -> dict[str, Any]:
    """One run of train.py: its accuracy, agreement and logit error by width, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "train.py", *command, f"hydra.run.dir={folder}"]
        subprocess.run(run, cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        results = json.loads((Path(folder) / "results.json").read_text())
    figures = ("top1", "agreement", "logit_error")
    return {
        "fp": results["fp"]["top1"],
        "evaluation_images": results["evaluation_images"],
        "seconds": results["seconds"]["reconstruct"] + results["seconds"]["tune"],
        "rows": {row["config"]: {name: row[name] for name in figures} for row in results["rows"]},
    }


def table(found: dict[str, Any]) -> str:
    """One table a case; a cell is top-1 / agreement with the float network / relative logit error."""
    parts = [
        "# Options on and off\n",
        "Made by `PTMQ_DATA=DIR python benchmarks/options.py`; one seed. Cells: top-1 / agreement with the float",
        "network (both in percent) / relative error of the logits, which is the sharpest of the three on few images.",
    ]
    for case in (name for name in CASES if name in found):
        rows = {option: found[case][option] for option in CASES[case][1] if option in found[case]}
        first = next(iter(rows.values()))
        widths = list(first["rows"])
        images, fp = first["evaluation_images"], first["fp"]
        parts += [
            f"\n## {case}\n",
            f"`train.py {' '.join(CASES[case][0])}`; {images} evaluation images, float {fp:.1f}.\n",
            "| | " + " | ".join(widths) + " | seconds |",
            "|---" * (len(widths) + 2) + "|",
        ]
        for option, result in rows.items():
            cells = [
                f"{r['top1']:.1f} / {r['agreement']:.1f} / {r['logit_error']:.4f}" for r in result["rows"].values()
            ]
            parts.append(f"| {option} | " + " | ".join(cells) + f" | {result['seconds']:.0f} |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
