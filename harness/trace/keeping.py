"""What becomes of a run's trace once the run has its verdict."""

from __future__ import annotations

import shlex
from pathlib import Path

from harness.options import RunOptions
from harness.report.record import RunRecord
from harness.trace.recorder import Recorder


def settle_trace(recorder: Recorder, options: RunOptions, record: RunRecord, failed: bool) -> None:
    """Ends the trace. It is kept in `options.record`, or of a run that `failed` in `options.keep_traces`; else nothing
    is left of it. `record` says where it is and how to replay it, or why it was lost."""
    kept: Path | None = None
    recorder.finish(record.verdict, record.reason)
    if options.record is not None:
        recorder.keep(options.record)
        kept = options.record
    elif failed and options.keep_traces is not None:
        kept = recorder.keep_in(options.keep_traces)
    if recorder.lost:
        record.trace_lost = recorder.lost
    elif kept is not None:
        record.trace = str(kept)
        record.repro.append(replay_command(record.trace))
    recorder.close()


def replay_command(trace: str) -> str:
    """The command that replays a trace, to paste."""
    return shlex.join(["xi-harness", "replay", trace])
