"""The synthetic workloads, by family: one kind of guest each, at sizes that grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.workload.knobs import Knobs
from harness.workload.program import Program
from harness.workload.workload import MEASURED, MakeEngine, Mark, Value, unmarked


@dataclass(frozen=True)
class Family:
    """A family of workloads. axis: what grows along `series`, a knob or ``pages``. knobs: the one that stands for the
    family. quick: a shorter series, of smaller guests."""

    name: str
    description: str
    program: Callable[[Knobs], Program]
    axis: str
    knobs: Knobs
    series: tuple[Knobs, ...] = ()
    quick: tuple[Knobs, ...] = ()

    def workload(self, knobs: Knobs | None = None) -> Synthetic:
        """Raises ValueError, one line, for knobs that no guest of the family can have."""
        return Synthetic(self, knobs or self.knobs)

    def size(self, knobs: Knobs) -> int:
        """Where `knobs` stand along the axis."""
        return int(getattr(knobs, self.axis))


class Synthetic:
    """One workload of a family (`harness.workload.workload.Workload`)."""

    def __init__(self, family: Family, settings: Knobs) -> None:
        self.family, self.settings = family, settings
        self.name, self.description = family.name, family.description
        self.knobs: Mapping[str, Value] = settings.flat()
        self.size = family.size(settings)
        self._facts: Mapping[str, int] | None = None

    @property
    def facts(self) -> Mapping[str, int]:
        """As they are when the measured part begins, once it has run; before, of what is there at the start."""
        if self._facts is None:
            self._facts = self.family.program(self.settings).facts()
        return self._facts

    def run(self, make: MakeEngine, mark: Mark = unmarked) -> None:
        program = self.family.program(self.settings)

        def told(part: str) -> None:
            if part == MEASURED:
                self._facts = program.facts()
            mark(part)

        program.run(make, told)
