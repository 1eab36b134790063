"""Replaying a trace: which replay fits the engine that is asked for."""

from __future__ import annotations

from collections.abc import Mapping

from harness import __version__
from harness.engines import engine_class
from harness.trace.exact import Replay
from harness.trace.neutral import NeutralReplay
from harness.trace.reader import Trace
from harness.trace.running import MakeEngine


def make_replay(
    trace: Trace,
    engine: str | None = None,
    policies: Mapping[str, str] | None = None,
    make_engine: MakeEngine | None = None,
) -> Replay:
    """The replay of `trace` through the engine called `engine` with `policies`, or made by `make_engine`.

    None: the engine of the recording, with its policies. For that one, set up so, the calls are replayed as they
    were recorded, and must come out so; else see `harness.trace.neutral`. The pool's words are compared where the same
    version of the harness recorded them. Raises TraceError as `Replay` does; ValueError, one line, for an engine that
    is not there and for policies that it does not know.
    """
    header = trace.header
    recorded = dict(header.config.options)
    same = engine in (None, header.engine)
    chosen = dict(policies) if policies is not None else recorded if same else {}
    make = make_engine or engine_class(engine or header.engine)
    if same and chosen == recorded:
        return Replay(trace, make, chosen, pool=header.created_by == f"xi-harness {__version__}")
    return NeutralReplay(trace, make, chosen)


def history_replay(trace: Trace) -> Replay:
    """A replay that only brings engine and memory to where they were, in a trace that may still be written."""
    return Replay(
        trace, engine_class(trace.header.engine), dict(trace.header.config.options), checking=False, follow=True
    )
