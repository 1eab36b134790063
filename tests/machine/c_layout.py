"""What a C compiler makes of a header that C code and the harness share, against the harness's numpy dtypes.

Each expectation is a `_Static_assert` line; `compiled` has gcc judge them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 60  # for one call of gcc


def _asserted(condition: str, name: str) -> str:
    return f'_Static_assert({condition}, "{name}");'


def constants(values: Mapping[str, int]) -> list[str]:
    """The macros have these values."""
    return [_asserted(f"{name} == {int(value)}u", name) for name, value in values.items()]


def size(struct: str, dtype: np.dtype[Any]) -> list[str]:
    """`struct` is as long as `dtype`, its padding included."""
    return [_asserted(f"sizeof(struct {struct}) == {dtype.itemsize}", struct)]


def offsets(struct: str, dtype: np.dtype[Any], names: Iterable[str] | None = None) -> list[str]:
    """The fields of `struct` lie where those of `dtype` do: all of them, or those in `names`."""
    fields = dict(dtype.fields or {})
    return [
        _asserted(f"__builtin_offsetof(struct {struct}, {name}) == {fields[name][1]}", f"{struct}.{name}")
        for name in (fields if names is None else names)
    ]


def compiled(
    directory: Path, include: Path, headers: Iterable[str], bits: int, lines: Iterable[str]
) -> subprocess.CompletedProcess[str]:
    """What gcc says to `lines` after the `headers` (names in `include`), in freestanding code of 32 or 64 `bits`.

    returncode is 0 where every line holds; stderr tells those that do not. directory: a place for the source.
    """
    source = directory / "layout.c"
    source.write_text("\n".join([*(f'#include "{header}"' for header in headers), *lines, ""]))
    command = ["gcc", f"-m{bits}", "-ffreestanding", "-fsyntax-only", "-I", str(include), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
