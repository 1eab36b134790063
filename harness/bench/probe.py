"""How fast the cross-check's probes are."""

from __future__ import annotations

import time

from harness.bench.figures import PAGING, Measured
from harness.catalogue import load_catalogue
from harness.options import RunOptions
from harness.session import Session


def measure() -> Measured:
    """Probes a second, end to end: planning, predicting, running in the guest and comparing."""
    guest = load_catalogue()["basic"]
    probes, seconds = 0, 0.0
    with Session(guest, PAGING, RunOptions(probe_budget=20000)) as session:
        while session.run_to_checkpoint() is not None:
            began = time.perf_counter()
            probes += session.check().checks["probe"]
            seconds += time.perf_counter() - began
    return {"probe.per_second": probes / seconds}, {"probe.count": probes, "probe.seconds": seconds}
