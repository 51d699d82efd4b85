"""How a figure is judged, and what is printed of it."""

import pytest
from benchmarks.results import Result, table


@pytest.mark.parametrize(
    ("value", "baseline", "bar", "at_least", "holds"),
    [
        (90.0, 100.0, 0.8, True, True),
        (70.0, 100.0, 0.8, True, False),
        (2.0, 1.0, 3.0, False, True),
        (4.0, 1.0, 3.0, False, False),
        (1.5, None, 2.0, False, True),
        (2.5, None, 2.0, False, False),
        (2.5, None, None, False, None),
    ],
)
def test_the_bar_is_on_the_ratio_where_there_is_a_baseline(
    value: float, baseline: float | None, bar: float | None, at_least: bool, holds: bool | None
) -> None:
    result = Result(name="x", value=value, unit="u", baseline=baseline, bar=bar, at_least=at_least)
    assert result.holds is holds
    fields = result.as_json()
    assert {"name", "value", "unit", "baseline", "ratio", "bar", "holds"} <= set(fields)
    assert fields["holds"] is holds
    assert ("FAILS" in table([result])) is (holds is False)


def test_what_the_machine_did_stands_beside_figures_without_a_baseline() -> None:
    calibration = {"cpu_loop_ms": 24.25, "fsync_ms": 0.64}
    alone = Result(name="alone", value=2.0, unit="ms", calibration=calibration)
    _, first, second = table([alone, Result(name="beside", value=2.0, unit="ms", baseline=1.0)]).splitlines()
    assert first.endswith("24.2, 0.64 ms")
    assert not second.endswith("ms")
