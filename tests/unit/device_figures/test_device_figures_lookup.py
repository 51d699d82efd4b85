"""Which figures count: measured before told before specified before estimated, and every estimate says so."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.gpu.backends.simulated.machine import load_machine
from exo.shared.device_figures import DeviceFigures, MeasuredFigures, catalogue, figures_for
from exo.shared.types.devices import Backend, GPUDevice, MemoryKind
from exo.shared.types.ids import DeviceId

GIB = 1024**3
MACHINES = sorted((Path(__file__).parents[2] / "hardware").glob("*.toml"))


def gpu(name: str, gib: float = 24, **changes: Any) -> GPUDevice:
    told: dict[str, Any] = {
        "device_id": DeviceId("n/cuda:0"),
        "local_alias": "cuda:0",
        "name": name,
        "vendor": "nvidia",
        "backend": "cuda",
        "memory_kind": "vram",
        "memory_total_bytes": int(gib * GIB),
    }
    return GPUDevice(**(told | changes))


def processor(name: str, **changes: Any) -> GPUDevice:
    return gpu(name, 64, **({"vendor": "amd", "backend": "cpu", "memory_kind": "ram"} | changes))


def mac(name: str, cores: int | None) -> GPUDevice:
    return gpu(name, 48, vendor="apple", backend="metal", memory_kind="unified", compute_units=cores)


def bandwidth(found: DeviceFigures) -> tuple[float, str]:
    figure = found.memory_bandwidth_bytes_per_s
    return round(figure.value / 1e9, 1), figure.basis


class TestWhatCounts:
    CARD = gpu("NVIDIA GeForce RTX 4090")

    def test_the_catalogue_by_name(self) -> None:
        found = figures_for(self.CARD)
        assert bandwidth(found) == (1008.0, "specified")
        assert {one: figure.value / 1e12 for one, figure in found.flops_per_s.items()} == {
            "float32": 82.6,
            "float16": 165.2,
            "bfloat16": 165.2,
            "int8": 660.6,
            "int4": 1321.2,
        }
        assert found.pcie_generation == 4
        assert not found.is_estimated
        assert "Ada GPU Architecture white paper" in found.compute_in("float16").source

    def test_what_the_driver_tells_counts_before_the_catalogue(self) -> None:
        told = replace(self.CARD, memory_bandwidth_bytes_per_s=9e11, flops_per_s=1.5e14)
        found = figures_for(told)
        assert bandwidth(found) == (900.0, "specified")
        assert found.memory_bandwidth_bytes_per_s.source == "its driver"
        assert found.flops_per_s["float16"].value == 1.5e14
        assert found.flops_per_s["float32"].value == 82.6e12

    def test_what_was_measured_counts_before_all(self) -> None:
        told = replace(self.CARD, memory_bandwidth_bytes_per_s=9e11)
        found = figures_for(
            told, MeasuredFigures(memory_bandwidth_bytes_per_s=8e11, flops_per_s={"float16": 1e14})
        )
        assert bandwidth(found) == (800.0, "measured")
        assert (found.flops_per_s["float16"].value, found.flops_per_s["float16"].basis) == (1e14, "measured")
        assert found.flops_per_s["float32"].basis == "specified"

    @pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, 0.0, -1e12, 1e30])
    def test_nonsense_does_not_count(self, nonsense: float) -> None:
        told = replace(self.CARD, memory_bandwidth_bytes_per_s=nonsense, flops_per_s=nonsense)
        measured = MeasuredFigures(memory_bandwidth_bytes_per_s=nonsense, flops_per_s={"float32": nonsense})
        assert figures_for(told, measured) == figures_for(self.CARD)

    def test_a_simulated_device_is_what_it_plays(self) -> None:
        played = replace(self.CARD, name="NVIDIA GeForce RTX 4090 (simulated)", backend="simulated")
        assert figures_for(played) == figures_for(self.CARD)

    def test_precisions_that_it_lacks_are_computed_in_wider_ones(self) -> None:
        found = figures_for(gpu("NVIDIA GeForce GTX 1080 Ti", 11))
        assert "float16" not in found.flops_per_s
        assert found.compute_in("float16") == found.flops_per_s["float32"]
        assert found.compute_in("int4") == found.flops_per_s["int8"]

    def test_what_was_measured_is_not_outdone_by_what_is_only_said(self) -> None:
        found = figures_for(self.CARD, MeasuredFigures(flops_per_s={"float16": 5e13}))
        assert found.compute_in("float16").value == 5e13 < found.flops_per_s["float32"].value
        assert found.compute_in("float32").basis == "specified"

    def test_what_a_device_brings_counts_as_measured(self) -> None:
        changes = {"measured_memory_bandwidth_bytes_per_s": 2e11, "measured_flops_per_s": 3e12}
        card = figures_for(replace(gpu("Something"), **changes))
        assert bandwidth(card) == (200.0, "measured")
        assert card.flops_per_s["float16"].value == 3e12
        cores = figures_for(replace(processor("AMD EPYC"), **changes))
        assert bandwidth(cores) == (200.0, "measured")
        assert cores.flops_per_s["float32"].basis == "measured"
        assert not card.is_estimated and not cores.is_estimated


class TestNotQuiteKnown:
    def test_a_laptops_card_is_not_the_desktops(self) -> None:
        found = figures_for(gpu("NVIDIA GeForce RTX 4060 Ti Laptop GPU", 8))
        assert found.known_as is None
        assert bandwidth(found) == (round(288 * 0.6, 1), "estimated")
        assert "'laptop'" in found.memory_bandwidth_bytes_per_s.source

    def test_another_memory_size_is_said(self) -> None:
        found = figures_for(gpu("NVIDIA GeForce RTX 4090", 48))
        assert bandwidth(found) == (1008.0, "estimated")
        assert (
            found.estimates[0] == "memory bandwidth: a GeForce RTX 4090 with 48.0 GiB is not in the catalogue"
        )

    def test_a_name_that_two_cards_have_is_an_estimate_until_the_driver_tells(self) -> None:
        card = gpu("NVIDIA GeForce GTX 1650", 4)
        assert bandwidth(figures_for(card)) == (128.0, "estimated")
        assert "GDDR6" in figures_for(card).estimates[0]
        assert bandwidth(figures_for(replace(card, memory_bandwidth_bytes_per_s=1.92e11))) == (
            192.0,
            "specified",
        )

    def test_a_name_for_several_is_as_the_slowest(self) -> None:
        found = figures_for(gpu("AMD Radeon RX 6600/6600 XT/6600M", 8, vendor="amd", backend="rocm"))
        assert bandwidth(found) == (224.0, "estimated")
        assert "Radeon RX 6600, Radeon RX 6600 XT" in found.estimates[0]

    def test_a_part_of_a_gpu_has_its_share(self) -> None:
        found = figures_for(gpu("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19.6))
        assert found.memory_bandwidth_bytes_per_s.value == pytest.approx(1555e9 * 19.6 / 40)
        assert found.memory_bandwidth_bytes_per_s.basis == "estimated"
        assert found.compute_in("float16").value == pytest.approx(312e12 * 3 / 7)

    def test_a_data_rate_that_nobody_tells(self) -> None:
        found = figures_for(gpu("NVIDIA GeForce RTX 5060 Laptop GPU", 8))
        assert bandwidth(found)[1] == "estimated"
        assert "128 bits of GDDR7" in found.estimates[0]

    def test_another_makers_name_does_not_count(self) -> None:
        assert (
            figures_for(gpu("A16", 4, vendor="apple", backend="metal", memory_kind="unified")).known_as
            is None
        )


class TestApple:
    def test_cores_tell_which_of_two_chips(self) -> None:
        assert bandwidth(figures_for(mac("Apple M4 Max", 32))) == (410.0, "specified")
        assert bandwidth(figures_for(mac("Apple M4 Max", 40))) == (546.0, "specified")
        assert bandwidth(figures_for(mac("Apple M4 Max", None))) == (410.0, "estimated")

    def test_fewer_cores_compute_less(self) -> None:
        whole, part = (figures_for(mac("Apple M1 Max", cores)).compute_in("float16") for cores in (32, 24))
        assert (whole.value, whole.basis) == (10.4e12, "specified")
        assert (part.value, part.basis) == (pytest.approx(7.8e12), "estimated")

    def test_flops_that_apple_does_not_tell_are_estimated_by_cores(self) -> None:
        found = figures_for(mac("Apple M3 Ultra", 80))
        assert bandwidth(found) == (819.0, "specified")
        assert found.compute_in("float16").basis == "estimated"
        assert found.compute_in("float16").value == pytest.approx(80 * 0.34e12, rel=0.1)

    def test_a_chip_to_come_is_as_those_with_as_many_cores(self) -> None:
        found = figures_for(mac("Apple M9 Ultra", 90))
        assert found.known_as is None
        assert 400 <= bandwidth(found)[0] <= 1000

    def test_its_cores_have_half_of_the_chips_memory_bandwidth(self) -> None:
        found = figures_for(processor("Apple M1 Max", vendor="apple", compute_units=10))
        assert bandwidth(found) == (200.0, "estimated")


class TestProcessors:
    def test_channels_and_cores(self) -> None:
        found = figures_for(processor("AMD EPYC 9354 32-Core Processor", compute_units=32, clock_mhz=3250.0))
        assert bandwidth(found) == (460.8, "estimated")
        assert "every channel" in found.estimates[0]
        assert found.flops_per_s["float32"].value == pytest.approx(32 * 3.25e9 * 32)

    def test_measured_bandwidth_is_no_estimate(self) -> None:
        found = figures_for(
            processor("AMD EPYC", compute_units=2),
            MeasuredFigures(memory_bandwidth_bytes_per_s=2.1e10, flops_per_s={"float32": 9e10}),
        )
        assert bandwidth(found) == (21.0, "measured")
        assert not found.is_estimated

    def test_unknown_is_as_a_desktop(self) -> None:
        found = figures_for(processor("VIA Nano", vendor="unknown"))
        assert bandwidth(found) == (51.2, "estimated")
        assert "two channels" in found.estimates[0]

    def test_a_board_whose_memory_is_soldered_is_specified(self) -> None:
        found = figures_for(processor("Raspberry Pi 5 Model B Rev 1.0", vendor="arm", compute_units=4))
        assert bandwidth(found) == (17.1, "specified")


class TestUnknown:
    def test_by_maker_and_memory(self) -> None:
        small, large = (figures_for(gpu("NVIDIA Something 1", gib)) for gib in (4, 80))
        assert small.known_as is None and large.known_as is None
        assert small.memory_bandwidth_bytes_per_s.value < large.memory_bandwidth_bytes_per_s.value
        assert small.is_estimated and large.is_estimated
        assert "'NVIDIA Something 1' is not in the catalogue; as the median of" in small.estimates[0]

    def test_a_gpu_within_a_processor_has_the_processors_memory(self) -> None:
        found = figures_for(
            gpu("Intel UHD Graphics 770", 16, vendor="intel", memory_kind="unified", backend="intel")
        )
        assert bandwidth(found) == (51.2, "estimated")

    @settings(max_examples=200, deadline=None)
    @given(
        name=st.one_of(
            st.text(max_size=300),
            st.builds(
                lambda words, mark: mark.join(words),
                st.lists(
                    st.sampled_from(
                        [word for one in catalogue() for word in one.patterns[0].split()] + ["MIG", "3g"]
                    ),
                    max_size=12,
                ),
                st.sampled_from([" ", "/", "-", ""]),
            ),
        ),
        vendor=st.sampled_from(["nvidia", "amd", "intel", "apple", "arm", "", "unknown", "NVIDIA"]),
        backend=st.sampled_from(["cuda", "rocm", "metal", "directml", "tflite", "cpu", "simulated", "intel"]),
        memory_kind=st.sampled_from(["vram", "ram", "unified"]),
        memory_bytes=st.integers(-(2**40), 2**60),
        units=st.one_of(st.none(), st.integers(-5, 10**9)),
        told=st.one_of(st.none(), st.floats()),
        clock=st.one_of(st.none(), st.floats()),
    )
    def test_anything_gets_figures_that_can_be_computed_with(
        self,
        name: str,
        vendor: str,
        backend: Backend,
        memory_kind: MemoryKind,
        memory_bytes: int,
        units: int | None,
        told: float | None,
        clock: float | None,
    ) -> None:
        one = gpu(
            name,
            vendor=vendor,
            backend=backend,
            memory_kind=memory_kind,
            memory_total_bytes=memory_bytes,
            compute_units=units,
            memory_bandwidth_bytes_per_s=told,
            flops_per_s=told,
            clock_mhz=clock,
        )
        found = figures_for(one)
        assert found == figures_for(one)
        figures = [found.memory_bandwidth_bytes_per_s, *found.flops_per_s.values(), found.compute_in("int4")]
        for figure in figures:
            assert math.isfinite(figure.value) and figure.value > 0
            assert figure.source
        assert "float32" in found.flops_per_s
        assert found.known_as is not None or found.memory_bandwidth_bytes_per_s.basis != "specified" or told


class TestMachinesOfTheProject:
    @pytest.mark.parametrize("file", MACHINES, ids=lambda file: file.stem)
    def test_files_agree_with_the_catalogue(self, file: Path) -> None:
        """A machine's file and the catalogue were written apart; what both tell is the same."""
        for described in load_machine(file).devices:
            found = figures_for(
                gpu(
                    described.name,
                    vendor=described.vendor,
                    backend="simulated",
                    memory_kind=described.memory_kind,
                    memory_total_bytes=described.memory_total_bytes,
                    compute_units=described.compute_units,
                )
            )
            assert found.known_as is not None
            assert found.memory_bandwidth_bytes_per_s.value == pytest.approx(
                described.memory_bandwidth_bytes_per_s, rel=0.01
            )
            if described.flops_per_s is not None:
                assert found.compute_in("float16").value == pytest.approx(described.flops_per_s, rel=0.01)

    @pytest.mark.parametrize(
        "cluster",
        [
            ["Apple M3 Ultra", "GeForce RTX 4090", "GeForce RTX 3090", "Apple M1 Max"],
            [
                "GeForce RTX 4090",
                "GeForce RTX 3090",
                "GeForce RTX 3050",
                "A100 PCIe 80 GB",
                "Jetson AGX Orin 64 GB",
            ],
            ["H200 SXM", "A100 SXM 80 GB", "GeForce RTX 4090", "GeForce RTX 3090", "Apple M2 Ultra"],
            [
                "Apple M1 Max",
                "Apple M2 Ultra",
                "Apple M3 Ultra",
                "Apple M4 Max (40 GPU cores)",
                "Apple M4 Pro",
            ],
            ["Jetson Orin NX 16 GB", "GeForce RTX 3050", "Apple M1"],
        ],
        ids=["desk", "lab", "large", "macs", "small"],
    )
    def test_the_named_mixed_clusters_are_in_the_catalogue(self, cluster: list[str]) -> None:
        by_name = {one.name: one for one in catalogue()}
        for name in cluster:
            assert by_name[name].memory.bandwidth_gb_per_s
