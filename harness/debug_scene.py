"""A session as its debugger sees it: the standing guest for gdb, and the scene for `monitor xi`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from harness.debug.commands.table import run_command
from harness.debug.debuggee import Debuggee
from harness.debug.description import Narrow, is_narrow, slots
from harness.debug.hardware import LiveHardware, ObservedHardware
from harness.debug.live_guest import LiveGuest
from harness.debug.observed import ObservedGuest
from harness.debug.scene import Hardware, Scene
from harness.intercept.events import Event
from harness.live.session import LiveSession
from harness.session import Session
from harness.trace.history import TraceHistory

ELF: Final = b"\x7fELF"
WORD: Final = 8  # bytes of the largest register that a command may name


class Stage:
    """What gdb and the commands are given of `session`, which has been started.

    debuggee: the guest for gdb, narrow where its image holds 32-bit code. hardware: the machine for the commands.
    symbol_file: an ELF file for gdb, None where the image is none.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        recorder = session.recorder
        self._history = None if recorder is None or recorder.lost else TraceHistory(recorder.path, recorder.flush)
        self.hardware: Hardware
        wide: Debuggee
        image = [gfn for segment in session.image.segments for gfn in segment.frames]
        if isinstance(session, LiveSession):
            wide = LiveGuest(session.machine, session.live)
            self.hardware = LiveHardware(session.target, session.live, image)
        else:
            wide = ObservedGuest(session.machine, session.observer, session.translate)
            self.hardware = ObservedHardware(session.target, session.observer, wide, image, lambda: session.stop)
        self._wide = wide
        self._slots = [slot for slot in slots(wide.documents) if slot.size <= WORD]
        narrow = self.symbol_file is not None and is_narrow(self.symbol_file)
        self.debuggee: Debuggee = Narrow(wide) if narrow else wide

    @property
    def symbol_file(self) -> Path | None:
        path = self.session.image.path
        with path.open("rb") as file:
            return path.absolute() if file.read(4) == ELF else None

    def command(self, line: str) -> str:
        """Runs one line behind `monitor xi`. Raises CommandError."""
        return run_command(self.scene(), line)

    def hmp(self, line: str) -> str:
        """Runs a command of QEMU's monitor."""
        return self.session.machine.monitor.human(line)

    def scene(self) -> Scene:
        """The guest and its shadow as they stand now."""
        session = self.session
        interception = session.interception
        return Scene(
            guest=f"{session.guest.name} {session.paging}, {session.record.mode}",
            engine=session.engine,
            state=interception.state,
            ram=session.memory.ram,
            p2m=session.memory.p2m,
            registers=self._registers(),
            total=interception.log.total,
            events=self._last,
            hardware=self.hardware,
            history=self._history,
            symbols=session.image.symbols,
        )

    def _registers(self) -> dict[str, int]:
        raw = self._wide.read_registers()
        return {s.name: int.from_bytes(raw[s.offset : s.offset + s.size], "little") for s in self._slots}

    def _last(self, count: int) -> Sequence[Event]:
        return self.session.interception.log.last(count)
