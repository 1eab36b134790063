"""What a bench gives: figures, and the raw numbers that stand beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Figures = dict[str, float]
Raw = dict[str, Any]
Measured = tuple[Figures, Raw]

ROUNDS: Final = 3  # of measurements that are taken in turns
PAGING: Final = "long4"


@dataclass(frozen=True, slots=True)
class Bench:
    """name: what `bench NAME` takes. measure gives (figures, raw numbers)."""

    name: str
    description: str
    measure: Callable[[], Measured]


def percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent))


def us(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles of `seconds`, in microseconds."""
    return {f"p{percent}": round(percentile(seconds, percent) * 1e6, 2) for percent in (10, 50, 99)}
