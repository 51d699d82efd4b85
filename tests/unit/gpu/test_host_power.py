"""The host's power and its two kinds of cores, from files as the kernel writes them."""

from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from exo.gpu.backends.host_sensors import PackagePower
from exo.gpu.host_memory import read_host_memory, read_swap
from exo.gpu.host_power import CoreLoads, PlatformPower, efficiency_cores


def zone(folder: Path, zone_name: str, name: str, energy_uj: int) -> None:
    (folder / zone_name).mkdir(exist_ok=True)
    (folder / zone_name / "name").write_text(f"{name}\n")
    (folder / zone_name / "energy_uj").write_text(f"{energy_uj}\n")


def test_the_platforms_energy_is_the_machines_and_no_package_among_others(tmp_path: Path) -> None:
    now_s = 0.0
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    zone(tmp_path, "intel-rapl:1", "psys", 0)
    machine, packages = PlatformPower(lambda: now_s, tmp_path), PackagePower(lambda: now_s, tmp_path)
    assert machine.watts() is None and packages.watts() is None
    now_s = 2.0
    zone(tmp_path, "intel-rapl:0", "package-0", 20_000_000)
    zone(tmp_path, "intel-rapl:1", "psys", 90_000_000)
    assert (machine.watts(), packages.watts()) == (45.0, 10.0)
    assert PlatformPower(lambda: now_s, tmp_path / "nothing").watts() is None


def test_intels_efficiency_cores_are_those_of_the_kernels_list(tmp_path: Path) -> None:
    assert efficiency_cores(tmp_path) == frozenset()
    (tmp_path / "cpu_atom").mkdir()
    (tmp_path / "cpu_atom" / "cpus").write_text("8-10,15\n")
    assert efficiency_cores(tmp_path) == {8, 9, 10, 15}


@pytest.mark.parametrize(
    ("capacities", "expected"),
    [((1024, 1024), set()), ((446, 446, 1024, 1024), {0, 1}), ((250, 700, 1024), {0}), ((), set())],
)
def test_arms_efficiency_cores_are_those_of_least_capacity(
    tmp_path: Path, capacities: tuple[int, ...], expected: set[int]
) -> None:
    for core, capacity in enumerate(capacities):
        folder = tmp_path / "system" / "cpu" / f"cpu{core}"
        folder.mkdir(parents=True)
        (folder / "cpu_capacity").write_text(f"{capacity}\n")
    (tmp_path / "system" / "cpu" / "cpufreq").mkdir(parents=True)
    assert efficiency_cores(tmp_path) == expected


class Times(NamedTuple):
    user: float
    idle: float


def test_the_loads_of_both_kinds_are_means_since_the_question_before() -> None:
    now_s, times = 0.0, [Times(0, 0), Times(0, 0), Times(0, 0)]
    loads = CoreLoads(lambda: now_s, frozenset({2}), lambda: times)
    assert loads.percents() == (None, None)
    now_s, times = 2.0, [Times(2, 0), Times(1, 1), Times(0.5, 1.5)]
    assert loads.percents() == (25.0, 75.0)
    now_s = 2.01
    assert loads.percents() == (25.0, 75.0)
    # A processor was switched off meanwhile: which is which is not known.
    now_s, times = 4.0, [Times(3, 1), Times(3, 1)]
    assert loads.percents() == (25.0, 75.0)


def test_where_all_cores_are_alike_nothing_is_read() -> None:
    def never() -> list[Times]:
        raise AssertionError("it was read")

    assert CoreLoads(lambda: 0.0, frozenset(), never).percents() == (None, None)


def test_memory_and_swap_are_what_psutil_finds_as_well(tmp_path: Path) -> None:
    memory = read_host_memory(tmp_path)
    assert memory.total_bytes == psutil.virtual_memory().total
    assert 0 < memory.available_bytes <= memory.total_bytes
    assert read_swap()[0] == psutil.swap_memory().total
