"""Recording a guest of the catalogue, to have its trace as a workload."""

from __future__ import annotations

from pathlib import Path

from harness.catalogue import load_catalogue
from harness.machine.errors import MachineError
from harness.options import Mode, RunOptions
from harness.runs import make_session
from harness.trace.recorder import SUFFIX


def record(guest: str, paging: str, folder: Path, mode: str = Mode.LIVE.value, seed: int = 1) -> Path:
    """A run of `guest` in the paging mode `paging`, recorded into `folder`; nothing is checked at its checkpoints,
    since a check's probes are not the guest's doing. The path of the file.

    Raises ValueError, one line, for a guest or mode that there is none of; what a session raises; MachineError where
    the run did not end as it should, or could not be recorded.
    """
    catalogue = load_catalogue()
    if guest not in catalogue:
        raise ValueError(f"unknown guest {guest!r} (known: {', '.join(catalogue)})")
    row = catalogue[guest]
    if paging not in row.modes:
        raise ValueError(f"{guest} does not run in {paging!r} (it does in {', '.join(row.modes)})")
    path = folder / f"{guest}-{paging}-{mode}-seed{seed}{SUFFIX}"
    with make_session(row, paging, RunOptions(record=path, mode=mode, seed=seed)) as session:
        while session.run_to_checkpoint() is not None:
            pass
        found = session.conclude()
        session.settle()
    if found.trace_lost or not found.as_expected:
        raise MachineError(f"{guest} {paging} could not be recorded: {found.trace_lost or found.reason}")
    return path
