"""The catalogue of test guests, read from `guest-kernels/guests.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness.machine.errors import BadImage
from harness.report.record import VERDICTS
from harness.x86.modes import MODES

_PACKAGE: Final = Path(__file__).resolve().parent
# A checkout has the guests beside the package; an installed package carries them in its data (see setup.py).
ROOT: Final = _PACKAGE / "data" if (_PACKAGE / "data").is_dir() else _PACKAGE.parent
GUESTS: Final = ROOT / "guest-kernels"
FIRMWARE: Final = ROOT / "firmware" / "build" / "xi-firmware.bin"


@dataclass(frozen=True, slots=True)
class Guest:
    """One row of the catalogue. memory_mib in MiB, time_limit in seconds of wall time, expected a verdict.

    overrides: paging mode -> fields that differ there. image: an ELF outside the catalogue.
    """

    name: str
    description: str
    modes: tuple[str, ...]
    cpu: str = "max"
    memory_mib: int = 32
    time_limit: float = 30.0
    expected: str = "pass"
    tags: tuple[str, ...] = ()
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    image: Path | None = None

    def expected_for(self, mode: str) -> str:
        return str(self.overrides.get(mode, {}).get("expected", self.expected))

    def cpu_for(self, mode: str) -> str:
        return str(self.overrides.get(mode, {}).get("cpu", self.cpu))

    def memory_for(self, mode: str) -> int:
        return int(self.overrides.get(mode, {}).get("memory", self.memory_mib))

    def time_limit_for(self, mode: str) -> float:
        return float(self.overrides.get(mode, {}).get("time_limit", self.time_limit))


def image_path(guest: Guest, mode: str) -> Path:
    """The guest's ELF for `mode`. Raises BadImage with what to do if it was not built."""
    path = guest.image or GUESTS / "build" / f"{guest.name}.{mode}.elf"
    if not path.is_file():
        what = "no such file" if guest.image else "it is not built: run `make guests`"
        raise BadImage(f"{path}: {what}")
    return path


def load_catalogue(path: Path | None = None) -> dict[str, Guest]:
    """Name -> guest, in the file's order. Raises ValueError that names the row and the field that is wrong."""
    path = path or GUESTS / "guests.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    return {guest.name: guest for guest in map(_guest, data.get("guest", []))}


_FIELDS: Final = {
    "name": str,
    "description": str,
    "modes": list,
    "cpu": str,
    "memory": int,
    "time_limit": (int, float),
    "expected": str,
    "tags": list,
    "source": str,  # the build's: which C file
    "half32": bool,  # the build's: the image holds the pae build too
    "define": list,  # the build's: preprocessor definitions
    "mode": dict,
}


def _guest(row: dict[str, Any]) -> Guest:
    name = row.get("name", "(unnamed)")
    for key, value in row.items():
        if key not in _FIELDS:
            raise ValueError(f"guest {name}: unknown field {key!r} (known: {', '.join(_FIELDS)})")
        if not isinstance(value, _FIELDS[key]):  # type: ignore[arg-type]
            raise ValueError(f"guest {name}: field {key!r} has the wrong type")
    if "name" not in row or "modes" not in row:
        raise ValueError(f"guest {name}: needs at least a name and its modes")
    unknown = [mode for mode in row["modes"] if mode not in MODES]
    if unknown:
        raise ValueError(f"guest {name}: unknown paging mode {unknown[0]!r} (known: {', '.join(MODES)})")
    if row.get("expected", "pass") not in VERDICTS:
        raise ValueError(f"guest {name}: unknown verdict {row['expected']!r} (known: {', '.join(VERDICTS)})")
    return Guest(
        name,
        row.get("description", ""),
        tuple(row["modes"]),
        row.get("cpu", "max"),
        row.get("memory", 32),
        float(row.get("time_limit", 30)),
        row.get("expected", "pass"),
        tuple(row.get("tags", ())),
        row.get("mode", {}),
    )


def select(names: list[str], modes: list[str], every: bool = False) -> list[tuple[Guest, str]]:
    """The runs that `names` and `modes` ask for, in catalogue order. No names with `every`: all guests; no modes:
    every mode the guest has. Raises ValueError that lists what is known."""
    catalogue = load_catalogue()
    for name in names:
        if name not in catalogue:
            raise ValueError(f"unknown guest {name!r} (known: {', '.join(catalogue)})")
    for mode in modes:
        if mode not in MODES:
            raise ValueError(f"unknown paging mode {mode!r} (known: {', '.join(list(MODES)[1:])})")
    chosen = list(catalogue.values()) if every else [catalogue[name] for name in dict.fromkeys(names)]
    runs = [(guest, mode) for guest in chosen for mode in guest.modes if not modes or mode in modes]
    if chosen and not runs:
        raise ValueError(f"{', '.join(g.name for g in chosen)}: not built for {', '.join(modes)}")
    return runs
