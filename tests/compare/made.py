"""A small comparison made up by hand: two engines, two sizes, one policy, two domains."""

from __future__ import annotations

from harness.compare.measurement import (
    FAULT,
    PERCENTS,
    Comparison,
    Domain,
    Left,
    Measurement,
    OperationFigures,
    Subject,
)
from harness.work import Held, Work

XI, RIVAL, POLICY = Subject("xi"), Subject("xen302"), Subject("xi", (("backlinks", "none"),))


def operation(calls: int, words: int, us: float) -> OperationFigures:
    """`calls` alike, of `words` words visited and `us` microseconds each."""
    return OperationFigures(
        calls,
        Work(calls * words, 0, 0, 0, 0),
        words_at=(float(words),) * len(PERCENTS),
        us_at=(us,) * len(PERCENTS),
        total_us=calls * us,
        rounds_us=(calls * us, calls * us * 1.5),
    )


def measurement(subject: Subject, size: int, words: int, us: float, held: int, workload: str = "faults") -> Measurement:
    return Measurement(
        subject,
        workload,
        knob="pages",
        size=size,
        standard=size == 1000,
        knobs={"spaces": 2},
        facts={"pages": size},
        operations={FAULT: operation(100, words, us), "write_protect": operation(10, 3 * words, us)},
        whole=operation(120, words, us),
        peak=Held(held, held, held, 4 * held if subject.engine == "xi" else 0),
    )


def comparison(command: str = "xi-harness compare", left: tuple[Left, ...] = ()) -> Comparison:
    """xi's fault: 10 words and 5 µs at both sizes; xen302's: 40 words and 25 µs, then 80 and 50; with backlinks=none
    1,000 words and half the memory."""
    return Comparison(
        command=command,
        base="xi",
        rounds=2,
        quick=False,
        machine={"processor": "a processor", "python": "3.11"},
        measurements=(
            measurement(XI, 100, 10, 5.0, 4096),
            measurement(XI, 1000, 10, 5.0, 8192),
            measurement(RIVAL, 100, 40, 25.0, 2048),
            measurement(RIVAL, 1000, 80, 50.0, 4096),
            measurement(POLICY, 1000, 1000, 20.0, 4096),
        ),
        domains=(
            Domain("reserved", "none", operation(10, 10, 5.0), operation(12, 10, 5.0)),
            Domain("shared", "greedy", operation(90, 10, 5.0), operation(95, 10, 5.0)),
        ),
        left=left,
        seconds=3.0,
    )
