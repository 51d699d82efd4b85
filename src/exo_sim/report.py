"""What many runs came to: how much went wrong, how long failovers took, how fast it was simulated, what broke."""

from collections.abc import Sequence

import msgspec

from exo_sim.schedule import Outcome, total

FAILURES_SHOWN = 10


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A run in which a promise was broken."""

    seed: int
    mode: str
    at_s: float
    broken: str
    is_defect: bool
    """Code failed instead: an exception that is no broken promise."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Of all runs together."""

    schedules: int
    """That count: at least 30 virtual seconds with at least five faults."""
    too_quiet: int
    virtual_s: float
    cpu_s: float
    faults: dict[str, int]
    counts: dict[str, int]
    messages: dict[str, int]
    failovers: int
    failover_p50_s: float | None
    failover_p99_s: float | None
    failures: list[Failure]

    @property
    def virtual_s_per_cpu_s(self) -> float:
        return self.virtual_s / self.cpu_s if self.cpu_s else 0.0


def report_on(outcomes: Sequence[Outcome], cpu_s: float) -> Report:
    """Add up what became of runs that took `cpu_s` of processor time together."""
    failovers_s = sorted(took_s for outcome in outcomes for took_s in outcome.failovers_s)
    return Report(
        schedules=sum(outcome.counts_as_schedule for outcome in outcomes),
        too_quiet=sum(not outcome.counts_as_schedule and outcome.broken is None for outcome in outcomes),
        virtual_s=sum(outcome.virtual_s for outcome in outcomes),
        cpu_s=cpu_s,
        faults=dict(sorted(total(outcomes, "faults").items())),
        counts=dict(sorted(total(outcomes, "counts").items())),
        messages=dict(sorted(total(outcomes, "messages").items())),
        failovers=len(failovers_s),
        failover_p50_s=_quantile(failovers_s, 0.5),
        failover_p99_s=_quantile(failovers_s, 0.99),
        failures=[
            Failure(
                seed=outcome.seed,
                mode=outcome.mode,
                at_s=outcome.virtual_s,
                broken=outcome.broken,
                is_defect=outcome.is_defect,
            )
            for outcome in outcomes
            if outcome.broken is not None
        ],
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def lines(report: Report) -> list[str]:
    """Return the report for people."""
    found = [
        f"{report.schedules} schedules, {report.virtual_s:.0f} cluster-seconds in {report.cpu_s:.1f} s of processor "
        f"time: {report.virtual_s_per_cpu_s:.0f} per second",
        f"faults: {_counted(report.faults)}",
        f"messages: {_counted(report.messages)}",
        f"seen: {_counted(report.counts)}",
    ]
    if report.failover_p50_s is not None and report.failover_p99_s is not None:
        found.append(
            f"from the crash of a leader, with nothing else wrong, to the next commit: p50 {report.failover_p50_s:.2f} "
            f"s, p99 {report.failover_p99_s:.2f} s, of {report.failovers}"
        )
    if report.too_quiet:
        found.append(f"{report.too_quiet} runs were too quiet to count")
    for failure in report.failures[:FAILURES_SHOWN]:
        kind = "DEFECT" if failure.is_defect else "BROKEN"
        found.append(f"{kind} at {failure.at_s:.2f} s: {failure.broken.strip().splitlines()[-1]}")
        found.append(f"    python -m exo_sim --seed {failure.seed} --nodes {failure.mode}")
    if len(report.failures) > FAILURES_SHOWN:
        found.append(f"and {len(report.failures) - FAILURES_SHOWN} more")
    if not report.failures:
        found.append("no promise was broken")
    return found
