"""Golden values, computed in float64 by an implementation of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def golden(section: str) -> Any:
    return json.loads((Path(__file__).parent / "golden" / "vectors.json").read_text())[section]
