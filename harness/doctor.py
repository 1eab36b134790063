"""What this machine has and lacks for the harness, and what each lack means."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from harness.cores import CORES_PER_LIVE_RUN
from harness.report.text import one_line

OK: Final = "ok"
MISSING: Final = "missing"  # something that is needed is not there, or too old
ABSENT: Final = "absent"  # something optional is not there
SHM_NEEDED: Final = 256 << 20  # bytes: two runs at once with room to spare


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. status: ok, missing (needed) or absent (optional).

    found: what is there, one line. means: what cannot be done without it, and what to do.
    """

    name: str
    status: str
    found: str
    means: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is looked for. needed: whether its lack makes the harness useless."""

    name: str
    package: str
    needed: bool
    purpose: str


PROGRAMS: Final = (
    Program("gcc", "gcc", True, "builds the firmware and the test guests"),
    Program("ld", "binutils", True, "links the firmware and the test guests"),
    Program("objcopy", "binutils", True, "makes the firmware's ROM image"),
    Program("make", "make", True, "runs the builds"),
    Program("gdb", "gdb", False, "debugging a stopped guest by hand"),
)
_WORST: Final = {OK: 0, ABSENT: 0, MISSING: 3}


def examine() -> list[Finding]:
    """Looks at everything. Starts a few short-lived programs; changes nothing, needs no rights, never raises
    for what it finds."""
    looks: list[Callable[[], Finding]] = [_python, _qemu]
    looks += [lambda program=program: _program(program) for program in PROGRAMS]  # type: ignore[misc]
    looks += [_compiler_32, _packages, _catalogue, _shared_memory, _cores, _svm, _pinning]
    return [look() for look in looks]


def exit_status(findings: Sequence[Finding]) -> int:
    """0 when runs are possible, 3 when something needed is missing."""
    return max((_WORST[finding.status] for finding in findings), default=0)


def to_json(findings: Sequence[Finding]) -> dict[str, Any]:
    return {"schema": 1, "ok": exit_status(findings) == 0, "findings": [asdict(finding) for finding in findings]}


def _python() -> Finding:
    return Finding("python", OK, f"{platform.python_implementation()} {platform.python_version()}")


def _qemu() -> Finding:
    try:
        from harness.machine.errors import MachineUnavailable  # noqa: PLC0415 - may itself be what is missing
        from harness.machine.qemu import find_qemu  # noqa: PLC0415
    except ImportError as error:
        return Finding("qemu", MISSING, one_line(str(error)), "the package is incomplete: run `make setup`")
    try:
        path, (major, minor) = find_qemu()
    except MachineUnavailable as error:
        return Finding("qemu", MISSING, one_line(str(error)), "no guest can be run; the engine's own tests can")
    return Finding("qemu", OK, f"{path}, version {major}.{minor}")


def _program(program: Program) -> Finding:
    path = shutil.which(program.name)
    if path is None:
        status = MISSING if program.needed else ABSENT
        return Finding(program.name, status, "", f"{program.purpose}: install the package {program.package}")
    return Finding(program.name, OK, _version(path))


def _version(path: str) -> str:
    output = _output([path, "--version"])
    first = output.splitlines()[0] if output else "version unknown"
    return f"{path}, {one_line(first, 80)}"


def _compiler_32() -> Finding:
    """Freestanding 32-bit objects need no multilib, but do need a compiler for x86."""
    name = "gcc -m32"
    gcc = shutil.which("gcc")
    if gcc is None:
        return Finding(name, MISSING, "", "32-bit guests and the firmware cannot be built without gcc")
    with tempfile.TemporaryDirectory(prefix="xi-doctor-") as folder:
        command = [gcc, "-m32", "-ffreestanding", "-c", "-x", "c", "-", "-o", os.path.join(folder, "a.o")]
        problem = _error(command, "int answer(void) { return 42; }\n")
    if problem:
        return Finding(name, MISSING, one_line(problem, 120), "this gcc does not build for 32-bit x86")
    return Finding(name, OK, "builds freestanding 32-bit objects")


def _packages() -> Finding:
    """The distribution's own requirements against what is installed."""
    try:
        requirements = importlib.metadata.requires("xi-harness") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", MISSING, "xi-harness is not installed here", "run `make setup`")
    lacking = []
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(name)
    if lacking:
        return Finding("packages", MISSING, f"not installed: {', '.join(lacking)}", "run `make setup`")
    return Finding("packages", OK, f"all that xi-harness {importlib.metadata.version('xi-harness')} requires")


def _catalogue() -> Finding:
    """The catalogue and its built images: nothing to run without them."""
    try:
        from harness.catalogue import GUESTS, image_path, load_catalogue  # noqa: PLC0415 - may itself be missing

        guests = load_catalogue()
    except Exception as error:
        return Finding("guests", MISSING, one_line(f"{type(error).__name__}: {error}"), "the catalogue is unusable")
    images = [image_path(guest, mode) for guest in guests.values() for mode in guest.modes]
    built = sum(path.is_file() for path in images)
    if built == len(images):
        return Finding("guests", OK, f"{len(guests)} guests, {built} images built, in {GUESTS}")
    return Finding(
        "guests", MISSING, f"{len(guests)} guests, {built} of {len(images)} images built", "build them: `make guests`"
    )


def _shared_memory() -> Finding:
    """Guest RAM is a file in /dev/shm; containers often give it 64 MiB."""
    name = "/dev/shm"
    if not os.access(name, os.W_OK | os.X_OK):
        return Finding(name, ABSENT, "not writable", "guest RAM goes to the temporary folder: slower on a real disk")
    free = shutil.disk_usage(name).free
    if free < SHM_NEEDED:
        means = f"less than {SHM_NEEDED >> 20} MiB: large or parallel guests may not fit; use --jobs 1"
        return Finding(name, ABSENT, f"{free >> 20} MiB free", means)
    return Finding(name, OK, f"{free >> 20} MiB free")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Finding("cores", ABSENT, "1", "runs go one at a time, QEMU and the engine take turns: slower")
    return Finding("cores", OK, str(cores))


def _svm() -> Finding:
    """Whether this QEMU emulates the SVM extension: the monitor of live mode needs it. Asked of a machine without a
    board, which never runs."""
    name = "svm"
    lost = "live mode cannot be used, observe mode can"
    try:
        from harness.machine.errors import MachineUnavailable  # noqa: PLC0415 - see `_qemu`
        from harness.machine.qemu import find_qemu  # noqa: PLC0415

        path, _ = find_qemu()
    except (ImportError, MachineUnavailable):
        return Finding(name, ABSENT, "", f"{lost}: there is no QEMU to emulate it")
    talk = "".join(json.dumps(command) + "\n" for command in _ASK_FOR_MAX)
    command = [str(path), "-machine", "none", "-nodefaults", "-display", "none", "-accel", "tcg", "-qmp", "stdio"]
    properties = _model_properties(_output(command, talk))
    if properties is None:
        return Finding(name, ABSENT, "QEMU does not say what its processor has", lost)
    if not properties.get("svm"):
        return Finding(name, ABSENT, "QEMU's -cpu max lacks it", f"{lost}: install QEMU 7.2 or newer with TCG")
    return Finding(name, OK, "emulated by QEMU's -cpu max: live mode can be used")


# In QMP. The expansion of type "full" names every property, those that the model leaves alone too.
_ASK_FOR_MAX: Final = (
    {"execute": "qmp_capabilities"},
    {"execute": "query-cpu-model-expansion", "arguments": {"type": "full", "model": {"name": "max"}}},
    {"execute": "quit"},
)


def _model_properties(answers: str) -> dict[str, Any] | None:
    """The processor's properties from QMP's answers, a JSON object a line; None when there are none in them."""
    for line in answers.splitlines():
        try:
            properties = json.loads(line)["return"]["model"]["props"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(properties, dict):
            return properties
    return None


def _pinning() -> Finding:
    """In live mode Python and QEMU's processor each spin, waiting for the other: each wants a core of its own."""
    name = "pinning"
    cores = os.sched_getaffinity(0)
    if len(cores) < CORES_PER_LIVE_RUN:
        means = "live mode works, but slowly: the guest and the engine take turns on the one core"
        return Finding(name, ABSENT, "needs two cores", means)
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        means = "live mode works, and is slower when the system puts the guest and the engine on one core"
        return Finding(name, ABSENT, f"not allowed: {error.strerror}", means)
    runs = len(cores) // CORES_PER_LIVE_RUN
    each = "one live run" if runs == 1 else f"{runs} live runs"
    return Finding(name, OK, f"guest and engine get a core each: room for {each} at a time")


def _output(command: Sequence[str], typed: str = "") -> str:
    """What `command` prints when it is given `typed`; empty when it does not run or does not end."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, input=typed, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _error(command: Sequence[str], source: str) -> str:
    """What `command` had to say when it failed on `source`; empty when it worked."""
    try:
        done = subprocess.run(
            command, input=source, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    return done.stderr.strip() or f"exit status {done.returncode}"
