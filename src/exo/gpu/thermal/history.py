"""The last readings as running integrals, from which windows for the calibration are cut at any two times."""

import msgspec

from exo.gpu.thermal.calibration import REFERENCE_C, Window

WINDOW_S = 45.0
SHORTEST_SHARE = 0.6
"""Of a window: what is learnt from while the history is still short."""
APART_S = 3.0
"""Between two windows."""
GAP_MAX_S = 12.0
"""Without a reading: what the power did in there nobody knows, so the history begins anew."""


class Point(msgspec.Struct, frozen=True, gc=False):
    """One reading with the integrals since the history began."""

    t_s: float
    temperature_c: float
    power_j: float
    temperature_c_s: float
    lagged_watts: float


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Points of the last window, oldest first."""

    points: tuple[Point, ...] = ()
    cut_s: float | None = None
    """When the last window was cut."""

    def with_reading(
        self, t_s: float, temperature_c: float, power_watts: float, lagged_watts: float
    ) -> "History":
        """Return the history with one more reading; `power_watts` is the mean since the one before."""
        if not self.points or t_s - self.points[-1].t_s > GAP_MAX_S:
            return History(points=(Point(t_s, temperature_c, 0.0, 0.0, lagged_watts),), cut_s=t_s)
        last = self.points[-1]
        elapsed_s = t_s - last.t_s
        middle_c = (temperature_c + last.temperature_c) / 2 - REFERENCE_C
        point = Point(
            t_s,
            temperature_c,
            last.power_j + power_watts * elapsed_s,
            last.temperature_c_s + middle_c * elapsed_s,
            lagged_watts,
        )
        first = 0
        while first + 2 < len(self.points) and self.points[first + 1].t_s <= t_s - WINDOW_S:
            first += 1
        return History(points=(*self.points[first:], point), cut_s=self.cut_s)

    def cut(self) -> tuple["History", Window, float] | None:
        """Return a window and the time since the last one, where one is due; the history remembers the cut."""
        if len(self.points) < 2:
            return None
        first, last = self.points[0], self.points[-1]
        since_s = last.t_s - (first.t_s if self.cut_s is None else self.cut_s)
        if last.t_s - first.t_s < SHORTEST_SHARE * WINDOW_S or since_s < APART_S:
            return None
        lagged = [point.lagged_watts for point in self.points]
        window = Window(
            change_c=last.temperature_c - first.temperature_c,
            power_j=last.power_j - first.power_j,
            temperature_c_s=last.temperature_c_s - first.temperature_c_s,
            elapsed_s=last.t_s - first.t_s,
            lagged_change_watts=last.lagged_watts - first.lagged_watts,
            lagged_spread_watts=max(lagged) - min(lagged),
        )
        return msgspec.structs.replace(self, cut_s=last.t_s), window, since_s
