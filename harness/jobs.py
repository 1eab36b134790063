"""One run to be done: which guest, in which paging mode, with which options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from harness.report.record import RunRecord

if TYPE_CHECKING:
    from harness.catalogue import Guest
    from harness.options import Progress, RunOptions

LIMIT_DEFAULT: Final = 60.0  # seconds, for a kernel that no catalogue entry gives a limit


@dataclass(frozen=True, slots=True)
class Job:
    """A guest of the catalogue, or (guest None) the kernel that `options.kernel` names.

    Jobs travel to worker processes: everything in them can be pickled.
    """

    guest: Guest | None
    paging: str
    options: RunOptions

    @property
    def name(self) -> str:
        if self.guest is not None:
            return self.guest.name
        return self.options.kernel.name if self.options.kernel else "kernel"

    @property
    def mode(self) -> str:
        return self.options.mode

    @property
    def expected(self) -> str:
        return self.guest.expected_for(self.paging) if self.guest is not None else "pass"

    @property
    def time_limit(self) -> float:
        """Seconds that the machine may take: the option, else the catalogue's, else 60."""
        if self.options.time_limit is not None:
            return self.options.time_limit
        return self.guest.time_limit_for(self.paging) if self.guest is not None else LIMIT_DEFAULT

    def record(self, verdict: str, reason: str) -> RunRecord:
        """The record of this job when the run itself could not give one."""
        return RunRecord(
            guest=self.name,
            paging=self.paging,
            mode=self.mode,
            engine=self.options.engine,
            verdict=verdict,
            expected=self.expected,
            reason=reason,
            seed=self.options.seed,
            repro=[self.options.command(self.name, self.paging)],
        )


Runner = Callable[[Job, "Callable[[Progress], None]"], RunRecord]


def run_job(job: Job, progress: Callable[[Progress], None]) -> RunRecord:
    """Runs one job in this process. Raises MachineUnavailable when there is no QEMU to run it."""
    from harness import runs  # noqa: PLC0415 - brings in numpy and QMP; only workers need them

    if job.guest is not None:
        return runs.run_guest(job.guest, job.paging, job.options, progress)
    if job.options.kernel is None:
        raise ValueError("a job needs a guest or a kernel")
    return runs.run_kernel(job.options.kernel, job.options, progress)
