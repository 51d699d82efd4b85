"""Heat foreseen, on many devices unlike the model: is a limit ever passed, and how much work does that cost.

Each device is a plant of `tests/support/thermal_plant.py` for twenty minutes of virtual time: two thermal nodes,
delays, bursts, a poor sensor, constants up to 40 % off. `corners` have every constant at an end of its range, and some
sensors that fall silent. Beside each, on the same plant with the same room and bursts: an oracle that knows all of it
and keeps the same margin, one that rides on the limit itself, and a threshold with hysteresis.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from benchmarks.calibration import calibrate
from benchmarks.results import NotMeasured, Result

if TYPE_CHECKING:
    from tests.support.thermal_plant import Comparison

DRAWN, CORNERS, WITHOUT_POWER = 600, 300, 300
QUICK_SHARE = 20
SHARE_MIN = 0.85


def run(*, quick: bool) -> list[Result | NotMeasured]:
    """Play all plants; about two minutes."""
    from tests.support.thermal_plant import compare, draw_corner, plants

    part = QUICK_SHARE if quick else 1
    drawn = [compare(kind, seed, plant) for kind, seed, plant in plants(range(DRAWN // part))]
    corners = [
        compare(kind, seed, plant)
        for kind, seed, plant in plants(range(1000, 1000 + CORNERS // part), draw_corner)
    ]
    silent = [
        compare(kind, seed, plant, tells_power=False)
        for kind, seed, plant in plants(range(WITHOUT_POWER // part))
    ]
    return [
        *_group("drawn", drawn, has_bars=True),
        *_foresight(drawn),
        *_group("corners", corners, has_bars=True),
        *_group("no power", silent, has_bars=False),
        _cost(),
    ]


def _group(name: str, runs: "list[Comparison]", *, has_bars: bool) -> list[Result | NotMeasured]:
    acted = [one for one in runs if one.reactive.pauses]
    shares = [one.share_of_oracle for one in runs]
    bold = [one.share_of_bold_oracle for one in runs]
    gains = [one.gain for one in acted]
    return [
        _count(f"{name}: devices over their limit", runs, _is_over, bar=0 if has_bars else None),
        _count(
            f"{name}: over it with a threshold", runs, lambda one: one.reactive.hottest_c > one.plant.limit_c
        ),
        Result(
            name=f"{name}: nearest to the limit",
            value=min(one.plant.limit_c - one.ours.hottest_c for one in runs),
            unit="C below",
        ),
        Result(
            name=f"{name}: share of the oracle's work, worst",
            value=min(shares),
            unit="",
            bar=SHARE_MIN if has_bars else None,
        ),
        Result(name=f"{name}: share of the oracle's work, median", value=statistics.median(shares), unit=""),
        Result(name=f"{name}: share of one on the limit itself, worst", value=min(bold), unit=""),
        Result(
            name=f"{name}: share of one on the limit itself, median", value=statistics.median(bold), unit=""
        ),
        Result(
            name=f"{name}: work over a threshold's, median",
            value=statistics.median(gains),
            unit="",
            bar=1.0 if has_bars else None,
        ),
        _count(f"{name}: less than a threshold that keeps the limit", acted, _is_less),
    ]


def _is_over(one: "Comparison") -> bool:
    return one.ours.hottest_c > one.plant.limit_c


def _is_less(one: "Comparison") -> bool:
    return one.gain < 1 and one.reactive.hottest_c <= one.plant.limit_c


def _count(
    name: str, runs: "list[Comparison]", is_counted: "Callable[[Comparison], bool]", bar: float | None = None
) -> Result:
    count = sum(is_counted(one) for one in runs)
    return Result(name=name, value=count, unit=f"of {len(runs)}", bar=bar, at_least=False)


def _foresight(runs: "list[Comparison]") -> Iterable[Result]:
    errors = sorted(
        error_c for one in runs if (error_c := one.controller.record.predictions.far.rms_c) is not None
    )
    yield Result(
        name="error of predictions of 30 s, median device", value=statistics.median(errors), unit="C"
    )
    yield Result(name="the same, worst of 20 devices", value=errors[len(errors) * 19 // 20], unit="C")
    yield Result(
        name="devices calibrated in the end",
        value=sum(one.controller.record.is_calibrated for one in runs),
        unit=f"of {len(runs)}",
    )


def _cost() -> Result:
    """Time what a node does for each reading of a device: take it in, and advise."""
    from tests.support.thermal_plant import Supervised, draw_plant, play

    from exo.gpu.thermal.advising import advise
    from exo.gpu.thermal.observing import observe

    calibration = calibrate()
    times: list[float] = []

    class Timed(Supervised):
        def __call__(self, t_s: float, reading: object, busy_share: float) -> float:
            began_s = time.perf_counter()
            if reading is not None:
                self.record = observe(self.record, t_s, reading, busy_share)  # type: ignore[arg-type]
            self.record, advice = advise(self.record, t_s)
            times.append(time.perf_counter() - began_s)
            return advice.work_fraction

    play(draw_plant("desktop", 1), Timed("desktop"), seed=1)
    return Result(
        name="one reading and its advice, median",
        value=statistics.median(times) * 1e6,
        unit="us",
        calibration=calibration,
    )
