"""One measured figure beside its baseline and its bar."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


class CannotMeasureError(Exception):
    """Raised when a measurement does not come about: something is missing here, or what is measured does not work."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A figure. The bar is on the ratio to the baseline where there is one, else on the value itself."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    bar: float | None = None
    at_least: bool = True
    """Whether the bar is a lower limit; else an upper one."""
    calibration: dict[str, float] | None = None
    """What this machine did in the same run, beside figures that have no baseline."""

    paired_ratio: float | None = None
    """The median of the ratios of rounds in which both sides ran one after the other: a drift of the machine
    cancels out. Where it is not given, the ratio is that of value and baseline."""

    @property
    def ratio(self) -> float | None:
        """Value over baseline."""
        if self.paired_ratio is not None:
            return self.paired_ratio
        return self.value / self.baseline if self.baseline else None

    @property
    def holds(self) -> bool | None:
        """Whether the bar is kept; None where there is no bar."""
        if self.bar is None:
            return None
        judged = self.value if self.ratio is None else self.ratio
        return judged >= self.bar if self.at_least else judged <= self.bar

    def as_json(self) -> dict[str, Any]:
        """The figure as plain values; `calibration` only where it counts."""
        fields = asdict(self)
        fields["limit"] = "at least" if fields.pop("at_least") else "at most"
        del fields["paired_ratio"]
        if fields["calibration"] is None:
            del fields["calibration"]
        return {**fields, "ratio": self.ratio, "holds": self.holds}


@dataclass(frozen=True, kw_only=True)
class NotMeasured:
    """A figure that there is none of in this run, and why."""

    name: str
    reason: str

    holds: Literal[False] = False
    """What was not measured holds no bar."""

    def as_json(self) -> dict[str, Any]:
        """As of a figure, with the reason in the place of the numbers."""
        return asdict(self)


def table(results: Sequence[Result | NotMeasured]) -> str:
    """The figures for people."""
    rows: list[tuple[str, ...]] = [("figure", "value", "baseline", "ratio", "bar", "", "fixed loop, fsync")]
    reasons: list[str] = []
    for one in results:
        if isinstance(one, NotMeasured):
            rows.append((one.name, "not measured", "", "", "", "FAILS", ""))
            reasons.append(f"{one.name}: {one.reason}")
            continue
        sign: Literal[">=", "<="] = ">=" if one.at_least else "<="
        rows.append(
            (
                one.name,
                f"{one.value:,.3g} {one.unit}" if abs(one.value) < 1000 else f"{one.value:,.0f} {one.unit}",
                "" if one.baseline is None else f"{one.baseline:,.4g}",
                "" if one.ratio is None else f"{one.ratio:.3f}",
                "" if one.bar is None else f"{sign} {one.bar:g}",
                {True: "holds", False: "FAILS", None: ""}[one.holds],
                ""
                if one.calibration is None
                else "{cpu_loop_ms:.1f}, {fsync_ms:.2f} ms".format(**one.calibration),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, *reasons])
