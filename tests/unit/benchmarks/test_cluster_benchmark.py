"""The benchmark of the core: its parts are there, one that fails does not hide the others, and its cluster is large."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmarks import __main__ as command
from benchmarks import cluster
from benchmarks.cluster import large
from benchmarks.cluster.measuring import CannotMeasureError, percentile
from benchmarks.results import NotMeasured, Result, table

from exo.shared.invariants import check


def good(*, quick: bool) -> list[Result]:
    return [Result(name="fast", value=2.0 if quick else 1.0, unit="s", bar=3, at_least=False)]


def bad(*, quick: bool) -> list[Result]:
    raise CannotMeasureError("there is no second machine")


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, run in (("good", good), ("bad", bad)):
        module = ModuleType(f"benchmarks.cluster.{name}")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cluster, "PARTS", ("bad", "good"))


@pytest.mark.parametrize("part", cluster.PARTS)
def test_each_part_is_a_module_that_can_be_run(part: str) -> None:
    module = importlib.import_module(f"benchmarks.cluster.{part}")
    assert module.__doc__ and callable(module.run)


def test_a_part_that_cannot_be_measured_does_not_hide_the_others(two_parts: None) -> None:
    missing, fast = cluster.run(quick=True)
    assert missing == NotMeasured(name="bad", reason="there is no second machine")
    assert isinstance(fast, Result) and fast.value == 2.0
    assert [one.name for one in cluster.run(quick=False, parts=["good"])] == ["fast"]
    printed = table([missing, fast])
    assert "not measured" in printed and "bad: there is no second machine" in printed


def test_the_command_writes_a_file_beside_the_table_and_says_by_its_exit_code_whether_all_is_well(
    two_parts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    assert command.main(["cluster", "good", "--quick", "--json", str(file)]) == 0
    assert "fast" in capsys.readouterr().out
    (written,) = json.loads(file.read_text())["results"]
    assert (written["name"], written["value"], written["holds"]) == ("fast", 2.0, True)

    assert command.main(["cluster", "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)["results"]
    assert (first["name"], first["holds"], second["value"]) == ("bad", False, 1.0)


def test_an_unknown_part_is_refused_with_the_known_ones(
    two_parts: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(["cluster", "god"])
    assert "no part 'god' of cluster; choose from: bad, good" in capsys.readouterr().err


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 99) == 7.0


def test_the_large_cluster_is_whole() -> None:
    state = large.measured()
    assert len(state.nodes) == len(state.live) == 1000
    assert sum(len(live.devices) for live in state.live.values()) == 8000
    assert all(live.profile is not None for live in state.live.values())
    assert check(state) == []
