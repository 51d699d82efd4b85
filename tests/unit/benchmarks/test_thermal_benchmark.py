"""The benchmark of heat foreseen plays what it says, and judges it."""

import pytest
from benchmarks import thermal
from benchmarks.results import Result


def test_every_group_is_played_and_the_bars_are_on_what_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRAWN", "CORNERS", "WITHOUT_POWER"):
        monkeypatch.setattr(thermal, name, 2 * thermal.QUICK_SHARE)
    results = {one.name: one for one in thermal.run(quick=True) if isinstance(one, Result)}
    for group in ("drawn", "corners", "no power"):
        assert results[f"{group}: devices over their limit"].unit == "of 2"
    bars = {name for name, one in results.items() if one.bar is not None}
    assert bars == {
        f"{group}: {figure}"
        for group in ("drawn", "corners")
        for figure in (
            "devices over their limit",
            "share of the oracle's work, worst",
            "work over a threshold's, median",
        )
    }
    assert all(one.holds is not False for one in results.values())
    assert results["one reading and its advice, median"].calibration is not None
