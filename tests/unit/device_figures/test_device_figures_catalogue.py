"""The catalogue of devices: every entry has its sources, and its figures are what its bus, units and clock make."""

from collections import defaultdict
from itertools import combinations

import pytest

from exo.shared.device_figures import KnownDevice, catalogue
from exo.shared.device_figures.naming import matches

NAMES = [one.name for one in catalogue()]
BY_NAME = {one.name: one for one in catalogue()}

# Operations per unit and clock, with sums in float32: from the makers' white papers, apart from the catalogue.
RATES: dict[str, dict[str, int]] = {
    "pascal": {"float32": 256, "int8": 1024},
    "p100": {"float32": 128, "float16": 256},
    "volta": {"float32": 128, "float16": 1024},
    "turing16": {"float32": 128, "float16": 256},
    "turing": {"float32": 128, "float16": 512, "int8": 2048, "int4": 4096},
    "turing_full": {"float32": 128, "float16": 1024, "int8": 2048, "int4": 4096},
    "ampere": {"float32": 256, "float16": 512, "bfloat16": 512, "int8": 2048, "int4": 4096},
    "ampere_full": {"float32": 256, "float16": 1024, "bfloat16": 1024, "int8": 2048, "int4": 4096},
    "ga100": {"float32": 128, "float16": 2048, "bfloat16": 2048, "int8": 4096, "int4": 8192},
    "ada": {"float32": 256, "float16": 512, "bfloat16": 512, "int8": 2048, "int4": 4096},
    "ada_full": {"float32": 256, "float16": 1024, "bfloat16": 1024, "int8": 2048, "int4": 4096},
    "hopper": {"float16": 4096, "bfloat16": 4096, "int8": 8192},
    "blackwell": {"float32": 256, "float16": 512, "bfloat16": 512, "int8": 2048},
    "blackwell_full": {"float32": 256, "float16": 1024, "bfloat16": 1024, "int8": 2048},
    "orin": {"float32": 256, "float16": 2048, "bfloat16": 2048, "int8": 4096},
    "thor": {"float32": 256, "float16": 8192, "bfloat16": 8192},
    "vega20": {"float32": 128, "float16": 256},
    "rdna2": {"float32": 128, "float16": 256},
    "rdna3": {"float32": 256, "float16": 512, "bfloat16": 512, "int8": 512, "int4": 1024},
    "rdna35": {"float32": 256, "float16": 512, "bfloat16": 512, "int8": 512, "int4": 1024},
    "rdna4": {"float32": 256, "float16": 1024, "bfloat16": 1024, "int8": 2048, "int4": 4096},
    "alchemist": {"float32": 256},
    "battlemage": {"float32": 256},
}
# Data sheets that give a precision at another rate than the architecture's, or at another clock.
OFF_THE_RATE = {("L40", "int8"), ("Tesla P4", "int8")}


@pytest.mark.parametrize("name", NAMES)
class TestEveryDevice:
    def test_tells_where_its_figures_are_from(self, name: str) -> None:
        sources = BY_NAME[name].sources
        for text in (sources.memory, sources.bandwidth, sources.compute):
            assert len(text.split()) >= 4
            assert any(f"20{year}" in text for year in range(16, 27)), text
            assert text.split(",")[0].split(" ")[0] in {"NVIDIA", "AMD", "Intel", "Apple", "Raspberry"}

    def test_has_the_bandwidth_that_its_bus_gives(self, name: str) -> None:
        memory = BY_NAME[name].memory
        if memory.bandwidth_gb_per_s is None or memory.bus_bits is None or memory.rate_mt_per_s is None:
            return
        by_formula = memory.bus_bits * memory.rate_mt_per_s / 8 / 1000
        assert memory.bandwidth_gb_per_s == pytest.approx(by_formula, rel=0.035)

    def test_computes_what_its_units_and_clock_give(self, name: str) -> None:
        device = BY_NAME[name]
        clock, units = device.compute.clock_mhz, device.compute.units
        for precision, rate in RATES.get(device.architecture, {}).items():
            told = device.compute.tera_flops_per_s.get(precision)  # type: ignore[call-overload]
            if told is None or clock is None or not units or (name, precision) in OFF_THE_RATE:
                continue
            assert told == pytest.approx(units[0] * clock * rate / 1e6, rel=0.04), precision

    def test_is_plausible(self, name: str) -> None:
        device = BY_NAME[name]
        assert device.memory.bandwidth_gb_per_s is None or 10 <= device.memory.bandwidth_gb_per_s <= 10_000
        assert all(1 <= size <= 512 for size in device.memory.gib)
        assert list(device.compute.units) == sorted(device.compute.units, reverse=True)
        flops = device.compute.tera_flops_per_s
        assert all(0.5 <= value <= 6000 for value in flops.values())
        # Fewer bits are never slower, where the device has arithmetic of its own for them.
        ladder = [flops[one] for one in ("float32", "float16", "int8", "int4") if one in flops]
        assert ladder == sorted(ladder)
        if device.kind == "gpu" and device.memory_kind == "vram":
            assert device.memory.gib
            # One token of a dense model takes at least two operations per weight read: no device is that unbalanced.
            best = max(flops.values(), default=None)
            if best and device.memory.bandwidth_gb_per_s:
                assert 5 <= best * 1000 / device.memory.bandwidth_gb_per_s <= 2000

    def test_is_found_by_its_own_patterns(self, name: str) -> None:
        device = BY_NAME[name]
        for pattern in device.patterns:
            sample = pattern.replace("?", "5").replace("*", "gold")
            assert device.name in {one.device.name for one in matches(sample, device.kind)}


class TestTheCatalogue:
    def test_covers_what_people_own(self) -> None:
        assert len(NAMES) >= 120
        assert len(set(NAMES)) == len(NAMES)
        counts: dict[str, int] = defaultdict(int)
        for one in catalogue():
            counts[one.vendor] += 1
        assert {vendor for vendor, count in counts.items() if count >= 2} == {
            "nvidia",
            "amd",
            "intel",
            "apple",
            "arm",
        }

    def test_two_devices_never_match_a_name_equally_well(self) -> None:
        """The same pattern twice is allowed only where memory or the number of units tells the two apart."""
        sharing: dict[tuple[str, str], list[KnownDevice]] = defaultdict(list)
        for one in catalogue():
            for pattern in one.patterns:
                sharing[one.kind, pattern].append(one)
        for (_, pattern), devices in sharing.items():
            for one, other in combinations(devices, 2):
                by_memory = bool(one.memory.gib and other.memory.gib) and not _overlap(one, other)
                by_units = bool(one.compute.units) and not set(one.compute.units) & set(other.compute.units)
                assert by_memory or by_units, (pattern, one.name, other.name)

    def test_what_is_known_of_each_precision_has_an_architecture_that_was_checked(self) -> None:
        unchecked = {one.architecture for one in catalogue() if one.compute.tera_flops_per_s} - set(RATES)
        # Data sheets tell their FLOP/s outright, and no rate per unit to check them by.
        assert unchecked == {"cdna", "blackwell_data_center", "apple_m1", "apple_m2"}


def _overlap(one: KnownDevice, other: KnownDevice) -> bool:
    """Whether memory of a size that a driver may tell fits both."""
    least = 0.85 if one.memory_kind == "vram" else 0.7
    return any(
        least * a <= b * 1.03 and least * b <= a * 1.03 for a in one.memory.gib for b in other.memory.gib
    )
