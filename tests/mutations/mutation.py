"""A mutation: one thing broken on purpose, and what must notice.

Catchers, by name: ``probe``, ``gva2gpa``, ``memory``, ``info_tlb``, ``ad_bits`` are the oracles of
`harness.report.record`; ``self-check`` is the interception's own (misses); ``audit:ID`` is the invariant ID of
`harness.xi.audit`; ``assertion`` is one of the engine's own, ``exception`` a LookupError that it raised: both end the
run.

In live mode also: ``tap``, the guest's own tests failed; ``crash``, its processor shut down; ``stuck``, one access
faulted for ever; ``timeout``; ``error``, the harness could not go on (`MachineError`); ``dirty-log``, the log was held
against the frames (`harness.live.stress`); ``twin:FIELD``, a difference from the native run (`harness.twin.compare`);
``migration``, the copy is not like the original.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from harness.live.session import LiveSession
from harness.migration.run import MigrationPlan
from harness.session import Session
from harness.xi.engine import XiEngine
from tests.xi.domain import Domain

PROBES: Final = 160  # probes a checkpoint: enough for every edge of the small guests' ranges over a few checkpoints
Tamper = Callable[[Session], None]
LiveTamper = Callable[[LiveSession], None]
Script = Callable[[type[XiEngine]], Domain]


class Way(StrEnum):
    """How the guest of a mutation is run."""

    OBSERVE = "observe"
    LIVE = "live"
    TWIN = "twin"  # natively and live, compared
    MIGRATE = "migrate"  # live, and migrated on the way


@dataclass(frozen=True, slots=True)
class Mutation:
    """One row of the table.

    name: short, unique. breaks: one sentence. caught_by: catchers that must all be among those that notice. guest,
    paging: the real run that shows it. engine: the engine of that run. tamper: breaks a session's parts just before
    it begins to observe. config: fields of `EngineConfig` to replace. blind: the guest is taken to have no probe
    server. script: instead of a run, a sequence of engine calls without QEMU, on the engine it is given; the domain
    that it leaves behind is audited. probes: per checkpoint.

    way: anything but OBSERVE is live mode. There `parts` are classes that a session is made with, by their names in
    `harness.live.session`, and `live_tamper` comes after them; options: fields of `RunOptions`; source:
    assembler text of the guest, if it is none of the catalogue; plan: of a migration.
    """

    name: str
    breaks: str
    caught_by: frozenset[str]
    guest: str = ""
    paging: str = ""
    engine: type[XiEngine] = XiEngine
    tamper: Tamper | None = None
    config: Mapping[str, int] = field(default_factory=dict)
    blind: bool = False
    script: Script | None = None
    probes: int = PROBES
    way: Way = Way.OBSERVE
    parts: Mapping[str, type] = field(default_factory=dict)
    live_tamper: LiveTamper | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    plan: MigrationPlan | None = None

    @property
    def where(self) -> str:
        """The run that shows it, for tables."""
        if self.script is not None:
            return f"script: {self.script.__name__}"
        extras = [f"{name}={value}" for name, value in (*self.config.items(), *self.options.items())]
        extras += ["no probes"] * self.blind
        way = "" if self.way is Way.OBSERVE else f" {self.way}"
        return f"{self.guest} {self.paging}{way}" + (f" ({', '.join(extras)})" if extras else "")

    @property
    def is_control(self) -> bool:
        return not self.caught_by

    @property
    def control(self) -> Mutation:
        """The same run with nothing broken: nobody may cry out."""
        return replace(
            self,
            name="control",
            breaks="nothing",
            caught_by=frozenset(),
            engine=XiEngine,
            tamper=None,
            parts={},
            live_tamper=None,
        )


def caught(*names: str) -> frozenset[str]:
    return frozenset(names)


@dataclass(slots=True)
class Catch:
    """What became of one mutation.

    evidence: catcher -> what it said first, in order of time. checkpoints: how many the run came to. seconds: of
    wall time. verdict: of a run that went to its end (controls), else empty.
    """

    mutation: Mutation
    evidence: dict[str, str] = field(default_factory=dict)
    checkpoints: int = 0
    seconds: float = 0.0
    verdict: str = ""

    @property
    def missing(self) -> frozenset[str]:
        """Catchers that should have noticed and did not."""
        return self.mutation.caught_by - self.evidence.keys()

    def note(self, catcher: str, said: str) -> None:
        self.evidence.setdefault(catcher, said)
