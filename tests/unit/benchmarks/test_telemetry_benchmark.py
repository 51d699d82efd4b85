"""The benchmark of telemetry: its parts are there, and its figures follow from what was seen."""

import importlib
import random
import statistics

import pytest
from benchmarks import telemetry
from benchmarks.cluster.measuring import CannotMeasureError
from benchmarks.telemetry import inference, memory, stub_driver
from benchmarks.telemetry.spread import Viewer, everywhere_s
from msgspec import convert

from exo.gpu.backends.simulated.machine import SimulatedMachine


@pytest.mark.parametrize("part", telemetry.PARTS)
def test_each_part_is_a_module_that_can_be_run(part: str) -> None:
    module = importlib.import_module(f"benchmarks.telemetry.{part}")
    assert module.__doc__ and callable(module.run)


def test_without_a_compiler_nothing_is_measured_and_the_reason_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stub_driver.shutil, "which", lambda name: None)
    with pytest.raises(CannotMeasureError, match="no C compiler"):
        stub_driver.needed()


def test_the_machine_that_is_played_can_be() -> None:
    machine = convert(memory.machine(3), SimulatedMachine)
    assert len({device.uuid for device in machine.devices}) == 3
    # Every reading finds other memory in use, whatever the interval.
    used = [step.memory_used_bytes for step in machine.devices[0].load]
    assert len(set(used)) == len(used) == 100 and max(used) < machine.devices[0].memory_total_bytes


class TestEverywhere:
    """When the last of the nodes shows a reading."""

    def test_the_last_node_counts(self) -> None:
        one = {"d": [(0.0, 0.5), (10.0, 10.02), (20.0, 20.09)]}
        other = {"d": [(0.0, 0.1), (10.0, 10.04), (20.0, 20.01)]}
        assert everywhere_s([one, other]) == pytest.approx([0.04, 0.09])

    def test_a_later_reading_stands_for_one_that_a_node_never_showed(self) -> None:
        one = {"d": [(0.0, 0.1), (10.0, 10.02), (20.0, 20.02)]}
        other = {"d": [(0.0, 0.1), (20.0, 20.03)]}
        assert everywhere_s([one, other]) == pytest.approx([10.03, 0.03])

    def test_what_was_there_before_somebody_looked_or_after_does_not_count(self) -> None:
        one = {"d": [(10.0, 99.0), (20.0, 20.02), (30.0, 30.02)]}
        other = {"d": [(0.0, 0.1), (10.0, 10.01), (20.0, 20.05)]}
        assert everywhere_s([one, other]) == pytest.approx([0.05])

    def test_each_device_counts_and_one_that_a_node_does_not_show_does_not(self) -> None:
        one = {"a": [(0.0, 0.0), (1.0, 1.5)], "b": [(0.0, 0.0), (2.0, 2.25)], "c": [(0.0, 0.0), (3.0, 3.1)]}
        other = {"a": [(0.0, 0.0), (1.0, 1.25)], "b": [(0.0, 0.0), (2.0, 2.75)]}
        assert sorted(everywhere_s([one, other])) == pytest.approx([0.5, 0.75])
        assert everywhere_s([{}, {}]) == []

    def test_a_viewer_notes_each_reading_once_and_of_simulated_devices_only(self) -> None:
        viewer = Viewer("http://nobody")
        early, late = "1970-01-01T00:01:40.250Z", "1970-01-01T00:01:42.250Z"
        for at_s, text in ((101.0, early), (102.0, early), (103.0, late), (104.0, early)):
            viewer.note({"n/simulated:0": {"last_update": text}, "n/cpu:0": {"last_update": text}}, at_s)
        assert viewer.seen == {"n/simulated:0": [(100.25, 101.0), (102.25, 103.0)]}


class TestInterval:
    """The estimate of what telemetry takes, and how sure it is."""

    def test_of_few_values_it_is_all_of_them(self) -> None:
        assert inference.interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
        assert inference.interval([5.0]) == (5.0, 5.0, 5.0)

    def test_of_ten_values_it_leaves_out_eight_of_their_means_on_either_side(self) -> None:
        """The table of Wilcoxon's statistic has 8 as its critical value for ten pairs at 5 %."""
        values = [float(2**number) for number in range(10)]
        means = sorted((one + other) / 2 for at, one in enumerate(values) for other in values[at:])
        estimate, low, high = inference.interval(values)
        assert (low, high) == (means[8], means[-9])
        assert estimate == statistics.median(means)

    def test_one_wild_round_hardly_moves_it(self) -> None:
        calm = [0.1 * (number % 5) for number in range(30)]
        assert inference.interval([*calm, 1000.0])[0] == pytest.approx(inference.interval(calm)[0], abs=0.05)

    def test_it_holds_what_is_true_as_often_as_it_says(self) -> None:
        chance = random.Random(7)
        hits = 0
        for _ in range(400):
            # As rounds of a shared machine are: mostly alike, some far off.
            values = [1.0 + chance.gauss(0, 5 if chance.random() < 0.2 else 1) for _ in range(30)]
            _, low, high = inference.interval(values)
            hits += low <= 1.0 <= high
        assert 0.92 <= hits / 400 <= 0.98


class TestJudged:
    """What is printed of pairs of speeds."""

    def test_little_taken_for_certain_holds(self) -> None:
        off = [100.0, 120.0, 90.0, 110.0, 100.0, 95.0, 105.0, 130.0]
        speed, estimate, low, high = inference.judged([0.98 * one for one in off], off)
        assert speed.ratio == pytest.approx(0.98) and speed.bar is None and speed.baseline == 102.5
        for figure in (estimate, low, high):
            assert figure.value == pytest.approx(0.5), "2 % of four times as much work"
        assert high.holds is True and low.holds is estimate.holds is None

    def test_much_does_not_hold_nor_does_what_is_uncertain(self) -> None:
        off = [100.0] * 10
        assert inference.judged([95.0] * 10, off)[-1].holds is False
        wild = [60.0, 140.0] * 5
        *_, estimate, _, high = inference.judged(wild, off)
        assert estimate.value == pytest.approx(0.0) and high.holds is False

    def test_pairs_have_two_sides(self) -> None:
        with pytest.raises(ValueError, match="longer"):
            inference.judged([1.0], [1.0, 2.0])
