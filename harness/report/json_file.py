"""The JSON report: one object with every run, for programs to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import __version__
from harness.report.output_file import write_atomic
from harness.report.record import SCHEMA, RunRecord


def document(records: Sequence[RunRecord], interrupted: bool = False) -> dict[str, Any]:
    """The report as one JSON-able object.

    ``schema`` and ``runs`` are the stable part; each run is `RunRecord.to_json()`. ``interrupted`` says that
    runs that were asked for are missing because the user stopped the command.
    """
    return {
        "schema": SCHEMA,
        "version": __version__,
        "interrupted": interrupted,
        "runs": [plain(record.to_json()) for record in records],
    }


def plain(value: Any) -> Any:
    """`value` with nothing in it that strict JSON lacks: numpy scalars and arrays, bytes, NaN, tuples, sets."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` to `path` in one step. Raises OSError."""
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
