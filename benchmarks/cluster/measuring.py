"""What the measurements share: percentiles, and figures that are judged as they are."""

import math
from collections.abc import Sequence

from benchmarks.calibration import calibrate
from benchmarks.results import CannotMeasureError as CannotMeasureError
from benchmarks.results import Result


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class Sheet:
    """Figures of one measurement. They have no baseline: what the machine does in the same run stands beside them."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self._calibration = calibrate()

    def add(
        self,
        name: str,
        value: float,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a figure with its bar, if it has one."""
        self.results.append(
            Result(
                name=name,
                value=value,
                unit=unit,
                bar=at_most if at_least is None else at_least,
                at_least=at_least is not None,
                calibration=self._calibration,
            )
        )
