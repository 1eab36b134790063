"""A mutation: one thing broken on purpose, and what must notice.

Catchers, by name: ``probe``, ``gva2gpa``, ``memory``, ``info_tlb``, ``ad_bits`` are the oracles of
`harness.report.record`; ``self-check`` is the interception's own (misses); ``audit:ID`` is the invariant ID of
`harness.xi.audit`, or of a peer's audit; ``assertion`` is one of the engine's own, ``exception`` one that it raised
when its lists did not fit each other any more: both end the run.

In live mode also: ``tap``, the guest's own tests failed; ``crash``, its processor shut down; ``stuck``, one access
faulted for ever; ``timeout``; ``error``, the harness could not go on (`MachineError`); ``dirty-log``, the log was held
against the frames (`harness.live.stress`); ``twin:FIELD``, a difference from the native run (`harness.twin.compare`);
``migration``, the copy is not like the original.

Of a replay: ``replay:CHECK``, a check of `harness.trace.tally` (a hyphen for its blank) has found a difference;
``exception`` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from harness.engine import EngineConfig, MachineMemory, ShadowEngine
from harness.live.session import LiveSession
from harness.migration.run import MigrationPlan
from harness.peers.engine import PeerEngine
from harness.session import Session
from harness.xi.engine import XiEngine
from tests.xi.domain import Domain

PROBES: Final = 160  # probes a checkpoint: enough for every edge of the small guests' ranges over a few checkpoints
Tamper = Callable[[Session], None]
LiveTamper = Callable[[LiveSession], None]
Engine = type[XiEngine] | type[PeerEngine]
Script = Callable[[Engine, Mapping[str, str]], Domain]


class Way(StrEnum):
    """How the guest of a mutation is run."""

    OBSERVE = "observe"
    LIVE = "live"
    TWIN = "twin"  # natively and live, compared
    MIGRATE = "migrate"  # live, and migrated on the way
    REPLAY = "replay"  # what XI was told of it when it ran live under stress, by what the guest did
    REPEAT = "repeat"  # what the engine itself was told, unbroken, when it ran live under stress, call by call


@dataclass(frozen=True, slots=True)
class Mutation:
    """One row of the table.

    name: short, unique. breaks: one sentence. caught_by: catchers that must all be among those that notice. guest,
    paging: the real run that shows it. engine: the engine of that run; policies: those that it has. tamper: breaks a
    session's parts just before it begins to observe. config: fields of `EngineConfig` to replace. blind: the guest is
    taken to have no probe server. script: instead of a run, a sequence of engine calls without QEMU, on the engine it
    is given; the domain that it leaves behind is audited. probes: per checkpoint. tested: it is one of the few that
    the tests run; the others are for `python -m tests.mutations`.

    way: anything but OBSERVE is live mode, or a replay of that. In live mode `parts` are classes that a session is made
    with, by their names in `harness.live.session`, and `live_tamper` comes after them; options: fields of `RunOptions`;
    source: assembler text of the guest, if it is none of the catalogue; plan: of a migration.
    """

    name: str
    breaks: str
    caught_by: frozenset[str]
    guest: str = ""
    paging: str = ""
    engine: Engine = XiEngine
    policies: Mapping[str, str] = field(default_factory=dict)
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
    tested: bool = False

    @property
    def subject(self) -> str:
        """The engine that is broken, and its policies, for tables: "" for XI as it is by itself."""
        words = [] if self.unbroken is XiEngine else [self.unbroken.name]
        return " ".join(words + [f"{name}={value}" for name, value in self.policies.items()])

    @property
    def where(self) -> str:
        """The run that shows it, for tables."""
        extras = [self.subject] if self.subject else []
        if self.script is not None:
            return ", ".join((f"script: {self.script.__name__}", *extras))
        extras += [f"{name}={value}" for name, value in (*self.config.items(), *self.options.items())]
        extras += ["no probes"] * self.blind
        way = "" if self.way is Way.OBSERVE else f" {self.way}"
        return f"{self.guest} {self.paging}{way}" + (f" ({', '.join(extras)})" if extras else "")

    @property
    def unbroken(self) -> Engine:
        """The engine that `engine` is a broken one of."""
        own: Engine
        (own, *_) = (each for each in self.engine.__mro__ if each.__module__.startswith("harness."))
        return own

    def make_engine(self, config: EngineConfig, memory: MachineMemory) -> ShadowEngine:
        """The engine of the run."""
        changes: dict[str, Any] = {"options": dict(self.policies), **self.config}
        return self.engine(replace(config, **changes), memory)

    @property
    def is_live(self) -> bool:
        """Whether a guest runs live for it; for a replay that is the one that is recorded."""
        return self.script is None and self.way is not Way.OBSERVE

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
            engine=self.unbroken,
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
