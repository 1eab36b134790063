"""The knobs of the synthetic workloads: how large the guest is, and how it behaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from harness.workload.workload import Value
from harness.x86.modes import MODES, PAGED_MODES

DIRECT = ("large", "small")


@dataclass(frozen=True, slots=True)
class Knobs:
    """Size: spaces (address spaces of processes), tables (L1 tables of each), fill (pages mapped in each table),
    mappings (user mappings of each data frame), pool (shadow tables that the engine has room for; 0: enough for all).

    Behaviour: writes (table writes between two faults, or pages of a burst), locality (0 .. 1: the chance that the next
    page is one of the same table as the last, and that the space stays), rounds (how often the measured part does what
    it does), seed.

    The guest: mode (nopae, pae, long4, long5); direct: the pages with which the kernel maps all its memory, ``large``
    or ``small`` (4 KiB).
    """

    spaces: int = 4
    tables: int = 8
    fill: int = 256
    mappings: int = 1
    writes: int = 16
    locality: float = 0.9
    rounds: int = 1000
    pool: int = 0
    mode: str = "long4"
    direct: str = "large"
    seed: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError, one line, for what no guest can be."""
        modes = [mode.name for mode in PAGED_MODES]
        if self.mode not in modes:
            raise ValueError(f"mode={self.mode}: the modes are {', '.join(modes)}")
        if self.direct not in DIRECT:
            raise ValueError(f"direct={self.direct}: the kernel map has pages that are {' or '.join(DIRECT)}")
        if not 0 <= self.locality <= 1:
            raise ValueError(f"locality={self.locality} is not within 0 .. 1")
        for name in ("spaces", "tables", "fill", "mappings", "writes", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")
        entries = MODES[self.mode].level(1).entries
        if self.fill > entries:
            raise ValueError(f"fill={self.fill}: a table of {self.mode} has {entries} entries")
        if self.pool < 0 or self.seed < 0:
            raise ValueError("pool and seed are not negative")

    @property
    def pages(self) -> int:
        """Pages that processes have mapped when the measured part begins."""
        return self.spaces * self.tables * self.fill

    @property
    def leaves(self) -> int:
        """L1 tables of processes."""
        return self.spaces * self.tables

    def flat(self) -> dict[str, Value]:
        return asdict(self)

    def changed(self, values: Mapping[str, str]) -> Knobs:
        """With `values` by name, as text. Raises ValueError, one line, for a name or a value that there is not."""
        known = {field.name: type(getattr(self, field.name)) for field in fields(self)}
        new: dict[str, Value] = {}
        for name, text in values.items():
            if name not in known:
                raise ValueError(f"unknown knob {name!r} (the knobs are {', '.join(known)})")
            try:
                new[name] = known[name](text)
            except ValueError as error:
                raise ValueError(f"{name}={text!r} is no {known[name].__name__}") from error
        return replace(self, **new)  # type: ignore[arg-type]
