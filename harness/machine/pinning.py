"""Which processor runs what: the controller and each vCPU spin while they wait for one another.

Two spinners on one processor hand over only when the scheduler takes it from one of them: milliseconds instead of
microseconds. So each gets a processor of its own where there are enough.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.machine.qemu import Machine

_outermost = threading.local()  # processors: what this thread could use before its first `pin` that still holds


def spread(processors: Sequence[int], threads: int) -> list[int]:
    """A processor for each of `threads`, never the last one, which is the controller's; with too few, threads share."""
    others = processors[:-1] or processors
    return [others[number % len(others)] for number in range(threads)]


def usable() -> frozenset[int]:
    """The processors that this thread may use, or might if it were not pinned by `pin`."""
    outer: frozenset[int] | None = getattr(_outermost, "processors", None)
    return frozenset(os.sched_getaffinity(0)) if outer is None else outer


@contextmanager
def pin(machine: Machine) -> Iterator[str]:
    """Pins this thread and QEMU's vCPU threads to different processors; lets go of this thread afterwards.

    Gives the empty string, or one line that says why hand-overs will be slow. May be nested, for several machines.
    """
    before = os.sched_getaffinity(0)
    outer: frozenset[int] | None = getattr(_outermost, "processors", None)
    _outermost.processors = processors = usable()
    try:
        yield _apply(machine, sorted(processors))
    finally:
        _outermost.processors = outer
        os.sched_setaffinity(0, before)


def _apply(machine: Machine, processors: Sequence[int]) -> str:
    vcpus = vcpu_threads(machine)
    needed = 1 + len(vcpus)
    try:
        # What was launched by a pinned thread is pinned with it: QEMU's other threads may go where they like.
        for thread in _threads(machine) - set(vcpus):
            os.sched_setaffinity(thread, processors)
        for thread, processor in zip(vcpus, spread(processors, len(vcpus)), strict=True):
            os.sched_setaffinity(thread, {processor})
        os.sched_setaffinity(0, {processors[-1]})
    except OSError as error:
        return f"pinning is not permitted ({error.strerror}): hand-overs may be slow"
    if len(processors) < needed:
        return f"{needed} threads that spin share {len(processors)} processor(s): hand-overs wait for the scheduler"
    return ""


def vcpu_threads(machine: Machine) -> list[int]:
    """Kernel thread ids of QEMU's vCPU threads, unique and in order: one for all vCPUs with ``thread=single``."""
    answer = machine.monitor.command("query-cpus-fast")
    return list(dict.fromkeys(int(cpu["thread-id"]) for cpu in answer))


def _threads(machine: Machine) -> set[int]:
    return {int(entry.name) for entry in Path(f"/proc/{machine.process.pid}/task").iterdir()}
