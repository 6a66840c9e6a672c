"""Named assignments put into an artifact that is there: its manifest is replaced whole, its tensors stay."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from ptmq_lightning.artifact.manifest import ARTIFACT, MANIFEST, read_manifest
from ptmq_lightning.artifact.schema import check_manifest
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.sealed import MOST_BYTES
from ptmq_lightning.runtime.spec import BitAssignment

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.+-]{0,99}", re.ASCII)  # of files of exports, in lists by comma
PAIR = re.compile(r"w\d+a\d+|float")


def store_assignments(folder: Path | str, assignments: Mapping[str, BitAssignment]) -> Path:
    """Add assignments to an artifact, or replace those of the same names. Others stay.

    A reader finds the old manifest or the new one, whatever stops the program.

    Args:
        folder: an artifact.
        assignments: by the name that `switch` and exports will know.

    Raises:
        ArtifactError: a folder that is no whole artifact, an assignment of other layers, or a name that cannot be one.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name in assignments:
        if not NAME.fullmatch(name) or PAIR.fullmatch(name):
            raise ArtifactError(
                f"found the name {name!r} for an assignment; expected letters, digits and _.+- that do not name a "
                "width, such as mixed_4.0. Choose another name."
            )
    named = {name: assignment.to_json() for name, assignment in assignments.items()}
    kept = {key: value for key, value in manifest.items() if key not in ("format", "version", "sha256")}
    changed = ARTIFACT.stamped(json.loads(json.dumps(kept | {"assignments": manifest["assignments"] | named})))
    check_manifest(changed)
    text = json.dumps(changed)
    if len(text) > MOST_BYTES:
        raise ArtifactError(
            f"{MANIFEST} would have {len(text):,} bytes with {len(changed['assignments'])} assignments; expected at "
            f"most {MOST_BYTES:,}. Store fewer."
        )
    write_atomically(folder / MANIFEST, text)
    return folder
