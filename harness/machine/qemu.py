"""One QEMU: found, launched, watched and always reaped."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Final

from harness.machine.console import Console
from harness.machine.deadline import Deadline
from harness.machine.errors import MachineError, MachineLost, MachineUnavailable
from harness.machine.gdbstub import GdbStub
from harness.machine.mailbox import EXIT_PORT
from harness.machine.qmp import Monitor
from harness.machine.ram import RamMap

OLDEST_QEMU: Final = (7, 2)
BINARY_VARIABLE: Final = "XI_QEMU"  # names another qemu-system-x86_64
POWER_OFF: Final = "qemu_system_shutdown_request reason=6"  # SHUTDOWN_CAUSE_GUEST_SHUTDOWN, QEMU 7.2
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)  # loaded before any fork: only the call itself is made in the child


@cache
def find_qemu() -> tuple[Path, tuple[int, int]]:
    """The QEMU to use and its (major, minor) version.

    Raises MachineUnavailable with one line that says what to do if there is none, or an unusable one.
    """
    name = os.environ.get(BINARY_VARIABLE, "qemu-system-x86_64")
    found = shutil.which(name)
    if found is None:
        raise MachineUnavailable(
            f"{name} is not installed: run `make setup`, or install the package qemu-system-x86 (7.2 or newer)"
        )
    try:
        text = subprocess.run(
            [found, "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineUnavailable(f"{found} does not run: {error}") from error
    match = re.search(r"version (\d+)\.(\d+)", text)
    if match is None:
        raise MachineUnavailable(f"{found} is not a QEMU: `--version` printed {text[:60]!r}")
    version = (int(match.group(1)), int(match.group(2)))
    if version < OLDEST_QEMU:
        raise MachineUnavailable(f"{found} is QEMU {version[0]}.{version[1]}; 7.2 or newer is needed")
    return Path(found), version


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What to launch. cpu: QEMU's -cpu. ram_mib: RAM. bios: our ROM, None for SeaBIOS (kernels that need it).
    kernel, initrd, append: for -kernel. extra: further arguments. smp: vCPUs. threads: ``single`` runs all vCPUs on one
    thread of the host, in turn; ``multi`` gives each its own."""

    cpu: str = "max"
    ram_mib: int = 32
    bios: Path | None = None
    kernel: Path | None = None
    initrd: Path | None = None
    append: str | None = None
    extra: tuple[str, ...] = field(default=())
    smp: int = 1
    threads: str = "single"


def _bare(spec: MachineSpec, scratch: Path, binary: Path) -> list[str]:
    """The machine itself: nothing of it speaks to a harness but the RAM file in `scratch`."""
    ram = scratch / "ram"
    command = [str(binary)]
    command += ["-name", "xi-harness"]
    command += ["-accel", f"tcg,thread={spec.threads}"]  # the MMU under test is TCG's; one thread is reproducible
    command += ["-cpu", spec.cpu]
    if spec.smp > 1:
        command += ["-smp", f"{spec.smp},sockets=1,cores={spec.smp},threads=1"]  # APIC IDs count from 0
    command += ["-m", f"{spec.ram_mib}M"]
    command += ["-object", f"memory-backend-file,id=ram,size={spec.ram_mib}M,mem-path={ram},share=on"]
    command += ["-M", "pc,memory-backend=ram"]  # RAM is a file that the harness maps as well
    command += ["-nodefaults", "-no-user-config"]  # nothing on the machine but what is named here
    command += ["-display", "none"]
    command += ["-no-reboot"]  # a triple fault ends QEMU instead of looping
    command += ["-trace", "enable=qemu_system_shutdown_request"]  # stderr tells a power-off
    command += ["-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"]  # the guest's way to end
    if spec.bios is not None:
        command += ["-bios", str(spec.bios)]
    if spec.kernel is not None:
        command += ["-kernel", str(spec.kernel)]
    if spec.initrd is not None:
        command += ["-initrd", str(spec.initrd)]
    if spec.append is not None:
        command += ["-append", spec.append]
    return [*command, *spec.extra]


def command_line(spec: MachineSpec, scratch: Path, binary: Path) -> list[str]:
    """QEMU's command line for `spec`, with its sockets and RAM file in `scratch`."""
    command = _bare(spec, scratch, binary)
    command += ["-chardev", f"pipe,path={scratch / 'console'},id=console"]
    command += ["-serial", "chardev:console"]
    command += ["-chardev", f"socket,path={scratch / 'qmp'},server=on,wait=off,id=qmp"]
    command += ["-mon", "chardev=qmp,mode=control"]
    command += ["-chardev", f"socket,path={scratch / 'gdb'},server=on,wait=off,id=gdb"]
    command += ["-gdb", "chardev:gdb"]
    command += ["-S"]  # the first instruction waits for the interception to be in place
    return command


def bare_command(spec: MachineSpec, scratch: Path) -> list[str]:
    """A command line with no harness attached (no gdbstub, no monitor), console to a file: the floor of timings."""
    binary, _ = find_qemu()
    return [*_bare(spec, scratch, binary), "-serial", f"file:{scratch / 'console.txt'}"]


def scratch_directory() -> Path:
    """A new private directory (0700), in shared memory where there is some: it holds RAM and sockets."""
    shm = Path("/dev/shm")
    parent = shm if os.access(shm, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="xi-harness-", dir=parent))


def _die_with_parent() -> None:
    # A harness that is killed takes its QEMU along (Linux: prctl(2), PR_SET_PDEATHSIG).
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Machine:
    """A launched QEMU, stopped before its first instruction. A context manager: leaving it reaps QEMU.

    Its RAM file and sockets have no name any more once it is up, so nothing is left whoever dies.
    """

    def __init__(self, spec: MachineSpec, prepare: Callable[[RamMap], None] | None = None, seconds: float = 20.0):
        """Launches. `prepare` fills RAM before the first instruction. Raises MachineUnavailable or MachineLost."""
        self.spec = spec
        binary, self.version = find_qemu()
        deadline = Deadline(seconds)
        with ExitStack() as stack:
            scratch = scratch_directory()
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            self.ram = RamMap(scratch / "ram", spec.ram_mib << 20)
            stack.callback(self.ram.release)
            self.console = Console(scratch / "console")
            stack.callback(self.console.close)
            self.command = command_line(spec, scratch, binary)
            self._stderr: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                process_group=0,  # Ctrl-C is for the harness, which then ends QEMU in its own way
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no lock is taken
            )
            stack.callback(self._reap)
            # While QEMU comes up (it has not run an instruction and waits for us), RAM is filled.
            self.ram.reserve()
            if prepare is not None:
                prepare(self.ram)
            try:
                self.gdb = GdbStub(scratch / "gdb", deadline, self.ended)
                stack.callback(self.gdb.close)
                self._qmp_path = scratch / "qmp"
                self.monitor = Monitor(self._qmp_path, deadline)
                stack.callback(self.monitor.close)
            except MachineError as error:
                self.raise_lost(f"QEMU did not come up: {error}", error)
            shutil.rmtree(scratch, ignore_errors=True)
            self._resources = stack.pop_all()

    def ended(self) -> bool:
        """Whether QEMU has ended."""
        return self.process.poll() is not None

    # ---- its end

    @property
    def powered_off(self) -> bool:
        """Whether the guest had powered the machine off, once QEMU has ended: if not, it was reset (or triple-faulted).

        From QEMU's trace of it: the QMP event that would tell is lost when it stands behind the two events that QEMU
        7.2 sends for each stop of the gdbstub and that nobody has read yet.
        """
        return POWER_OFF in self.stderr_text

    @property
    def stderr_text(self) -> str:
        try:
            self._stderr.seek(0)
            return self._stderr.read(65536).decode(errors="replace")
        except ValueError:  # already closed
            return ""

    def wait_exit(self, seconds: float) -> int | None:
        """QEMU's exit status, None if it still runs after `seconds`."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def raise_lost(self, what: str, cause: BaseException | None = None) -> None:
        """Raises MachineLost with everything that is known of QEMU's end."""
        status = self.wait_exit(0.5)
        raise MachineLost(what, self.command, status, self.stderr_text) from cause

    def _reap(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Ends QEMU and frees everything. May be called twice."""
        self._resources.close()

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
