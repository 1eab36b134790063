"""From what a guest did to its verdict."""

from __future__ import annotations

from typing import Final

from harness.machine.console import Console
from harness.machine.mailbox import EXIT_FAIL, EXIT_PASS
from harness.report.record import RunRecord

STATUS_PASS: Final = EXIT_PASS << 1 | 1  # isa-debug-exit: QEMU's status is (value << 1) | 1
STATUS_FAIL: Final = EXIT_FAIL << 1 | 1


def judge_end(record: RunRecord, console: Console, status: int | None) -> None:
    """Sets verdict and reason of a guest that ended by itself, from QEMU's exit status and the TAP it printed.

    QEMU ends with status 0 when the guest triple-faults or powers off under -no-reboot.
    """
    plan, results, bailed = console.tap()
    record.tap = results
    failed = sum(not ok for ok, _ in results)
    if status == STATUS_PASS:
        if plan is None or len(results) != plan:
            record.verdict, record.reason = "fail", f"TAP plan {plan}, {len(results)} results"
        elif failed:
            record.verdict, record.reason = "fail", f"{failed} TAP lines not ok"
        else:
            record.verdict, record.reason = "pass", ""
    elif status == STATUS_FAIL:
        what = "the guest bailed out" if bailed else f"{failed} TAP lines not ok"
        record.verdict, record.reason = "fail", what
    elif status == 0:
        record.verdict, record.reason = "crash", "the processor shut down (triple fault)"
    else:
        record.verdict, record.reason = "error", f"QEMU ended with status {status}"


def judge_checks(record: RunRecord, forgive_misses: bool = False) -> None:
    """A run whose checks found anything fails, however the guest itself ended.

    forgive_misses: interception misses are told in the reason, but do not fail the run.
    """
    found = [
        (record.mismatches, "mismatches"),
        (record.audit_failures, "audit failures"),
        (0 if forgive_misses else record.interception_misses, "interception misses"),
    ]
    words = [f"{count} {what}" for count, what in found if count]
    if words:
        ended = f" (the guest: {record.verdict})" if record.verdict not in ("pass", "fail") else ""
        record.verdict, record.reason = "fail", ", ".join(words) + ended
    if forgive_misses and record.interception_misses:
        record.reason += f" ({record.interception_misses} changes were seen late and repaired)"
