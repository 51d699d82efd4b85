"""Names as drivers really tell them, and which device of the catalogue each is."""

import pytest

from exo.shared.device_figures import figures_for
from exo.shared.device_figures.naming import alternatives, matches, words
from exo.shared.types.devices import Backend, GPUDevice, MemoryKind
from exo.shared.types.ids import DeviceId

GIB = 1024**3


def device(
    name: str,
    gib: float,
    vendor: str = "nvidia",
    *,
    memory_kind: MemoryKind = "vram",
    units: int | None = None,
    backend: Backend | None = None,
) -> GPUDevice:
    by_vendor: dict[str, Backend] = {"nvidia": "cuda", "amd": "rocm", "intel": "intel", "apple": "metal"}
    return GPUDevice(
        device_id=DeviceId("n/x:0"),
        local_alias="x:0",
        name=name,
        vendor=vendor,
        backend=backend or by_vendor.get(vendor, "cpu"),
        memory_kind=memory_kind,
        memory_total_bytes=int(gib * GIB),
        compute_units=units,
    )


# (driver's name, GiB as its driver tells, the catalogue's name, 10^9 bytes/s): NVML's names and sizes.
NVIDIA = [
    ("NVIDIA GeForce GTX 1060 6GB", 6.0, "GeForce GTX 1060 6 GB", 192),
    ("NVIDIA GeForce GTX 1060 3GB", 3.0, "GeForce GTX 1060 3 GB", 192),
    ("NVIDIA GeForce GTX 1080 Ti", 11.0, "GeForce GTX 1080 Ti", 484),
    ("NVIDIA TITAN Xp", 11.9, "TITAN Xp", 547.7),
    ("NVIDIA GeForce GTX 1660 SUPER", 6.0, "GeForce GTX 1660 SUPER", 336),
    ("NVIDIA GeForce RTX 2060", 6.0, "GeForce RTX 2060", 336),
    ("NVIDIA GeForce RTX 2060", 12.0, "GeForce RTX 2060 12 GB", 336),
    ("NVIDIA GeForce RTX 2080 Ti", 11.0, "GeForce RTX 2080 Ti", 616),
    ("NVIDIA GeForce RTX 3050", 8.0, "GeForce RTX 3050", 224),
    ("NVIDIA GeForce RTX 3050", 6.0, "GeForce RTX 3050 6 GB", 168),
    ("NVIDIA GeForce RTX 3060", 12.0, "GeForce RTX 3060", 360),
    ("NVIDIA GeForce RTX 3060", 8.0, "GeForce RTX 3060 8 GB", 240),
    ("NVIDIA GeForce RTX 3080", 10.0, "GeForce RTX 3080", 760),
    ("NVIDIA GeForce RTX 3080", 12.0, "GeForce RTX 3080 12 GB", 912),
    ("NVIDIA GeForce RTX 3090", 24.0, "GeForce RTX 3090", 936),
    ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", 16.0, "GeForce RTX 3080 Ti Laptop", 512),
    ("NVIDIA GeForce RTX 4060 Ti", 16.0, "GeForce RTX 4060 Ti", 288),
    ("NVIDIA GeForce RTX 4070 Ti SUPER", 16.0, "GeForce RTX 4070 Ti SUPER", 672),
    ("NVIDIA GeForce RTX 4090", 23.99, "GeForce RTX 4090", 1008),
    ("NVIDIA GeForce RTX 4090 D", 23.99, "GeForce RTX 4090 D", 1008),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", 15.99, "GeForce RTX 4090 Laptop", 576),
    ("NVIDIA GeForce RTX 5090", 31.8, "GeForce RTX 5090", 1792),
    ("NVIDIA GeForce RTX 5090 Laptop GPU", 23.9, "GeForce RTX 5090 Laptop", 896),
    ("Quadro RTX 8000", 47.9, "Quadro RTX 8000", 672),
    ("NVIDIA RTX A6000", 47.99, "RTX A6000", 768),
    ("NVIDIA RTX 4000 SFF Ada Generation", 19.99, "RTX 4000 SFF Ada Generation", 280),
    ("NVIDIA RTX 6000 Ada Generation", 47.99, "RTX 6000 Ada Generation", 960),
    (
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        95.6,
        "RTX PRO 6000 Blackwell Workstation Edition",
        1792,
    ),
    ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 95.6, "RTX PRO 6000 Blackwell Server Edition", 1597),
    ("Tesla P40", 23.9, "Tesla P40", 346),
    ("Tesla P100-PCIE-16GB", 16.0, "Tesla P100 PCIe 16 GB", 732),
    ("Tesla V100-SXM2-32GB", 31.7, "Tesla V100 SXM2", 900),
    ("Tesla V100S-PCIE-32GB", 31.7, "Tesla V100S PCIe", 1134),
    ("Tesla T4", 14.6, "Tesla T4", 320),
    ("NVIDIA A10", 22.5, "A10", 600),
    ("NVIDIA A10G", 22.5, "A10G", 600),
    ("NVIDIA A30", 23.6, "A30", 933),
    ("NVIDIA A40", 44.98, "A40", 696),
    ("NVIDIA A100-PCIE-40GB", 39.6, "A100 PCIe 40 GB", 1555),
    ("NVIDIA A100-SXM4-40GB", 39.6, "A100 SXM 40 GB", 1555),
    ("NVIDIA A100 80GB PCIe", 79.3, "A100 PCIe 80 GB", 1935),
    ("NVIDIA A100-SXM4-80GB", 79.3, "A100 SXM 80 GB", 2039),
    ("NVIDIA L4", 22.5, "L4", 300),
    ("NVIDIA L40", 44.98, "L40", 864),
    ("NVIDIA L40S", 44.98, "L40S", 864),
    ("NVIDIA H100 PCIe", 79.6, "H100 PCIe", 2039),
    ("NVIDIA H100 80GB HBM3", 79.6, "H100 SXM", 3350),
    ("NVIDIA H100 NVL", 93.6, "H100 NVL", 3900),
    ("NVIDIA H200", 140.4, "H200 SXM", 4800),
    ("NVIDIA H200 NVL", 140.4, "H200 NVL", 4800),
    ("NVIDIA GH200 480GB", 95.6, "GH200 96 GB", 4000),
    ("NVIDIA B200", 179.1, "B200", 8000),
]
# (driver's name, maker, GiB, units, the catalogue's name, 10^9 bytes/s); Metal tells the part that the GPU may have.
OTHERS: list[tuple[str, str, float, int | None, MemoryKind, str, float]] = [
    ("NVIDIA GB10", "nvidia", 119.7, None, "unified", "GB10 (DGX Spark)", 273),
    ("Orin", "nvidia", 61.3, None, "unified", "Jetson AGX Orin 64 GB", 204.8),
    ("Orin (nvgpu)", "nvidia", 15.3, 8, "unified", "Jetson Orin NX 16 GB", 102.4),
    ("NVIDIA Thor", "nvidia", 122.8, 20, "unified", "Jetson T5000", 273),
    ("Apple M1", "apple", 10.6, 7, "unified", "Apple M1", 68.25),
    ("Apple M1 Max", "apple", 48.0, 32, "unified", "Apple M1 Max", 400),
    ("Apple M2 Ultra", "apple", 144.0, 76, "unified", "Apple M2 Ultra", 800),
    ("Apple M3 Max", "apple", 27.0, 30, "unified", "Apple M3 Max (30 GPU cores)", 300),
    ("Apple M3 Max", "apple", 96.0, 40, "unified", "Apple M3 Max (40 GPU cores)", 400),
    ("Apple M3 Ultra", "apple", 384.0, 80, "unified", "Apple M3 Ultra", 819),
    ("Apple M4 Pro", "apple", 48.0, 20, "unified", "Apple M4 Pro", 273),
    ("Apple M4 Max", "apple", 96.0, 40, "unified", "Apple M4 Max (40 GPU cores)", 546),
    ("Apple M5", "apple", 24.0, 10, "unified", "Apple M5", 153),
    ("AMD Radeon RX 6700 XT", "amd", 11.98, 40, "vram", "Radeon RX 6700 XT", 384),
    ("AMD Radeon RX 7900 XTX", "amd", 23.98, 96, "vram", "Radeon RX 7900 XTX", 960),
    ("AMD Radeon RX 7900 XT/7900 XTX/7900 GRE/7900M", "amd", 19.98, 84, "vram", "Radeon RX 7900 XT", 800),
    ("AMD Radeon RX 7900 XT/7900 XTX/7900 GRE/7900M", "amd", 23.98, None, "vram", "Radeon RX 7900 XTX", 960),
    ("AMD Radeon RX 6800/6800 XT / 6900 XT", "amd", 15.98, 72, "vram", "Radeon RX 6800 XT", 512),
    ("AMD Radeon RX 9070/9070 XT/9070 GRE", "amd", 15.9, 64, "vram", "Radeon RX 9070 XT", 640),
    ("AMD Radeon PRO W7900", "amd", 47.98, 96, "vram", "Radeon PRO W7900", 864),
    ("AMD Instinct MI100", "amd", 31.98, 120, "vram", "Instinct MI100", 1228.8),
    ("AMD Instinct MI210", "amd", 63.98, 104, "vram", "Instinct MI210", 1638.4),
    ("AMD Instinct MI300X", "amd", 191.98, 304, "vram", "Instinct MI300X", 5300),
    ("AMD Instinct MI355X", "amd", 287.98, 256, "vram", "Instinct MI355X", 8000),
    ("AMD Radeon 8060S Graphics", "amd", 96.0, 40, "unified", "Radeon 8060S (Ryzen AI Max+)", 256),
    ("Intel Arc A770", "intel", 15.9, None, "vram", "Arc A770", 560),
    ("Intel(R) Arc(TM) A770 Graphics", "intel", 7.9, None, "vram", "Arc A770 8 GB", 512),
    ("Intel Arc B580", "intel", 11.9, None, "vram", "Arc B580", 456),
    ("Intel(R) Arc(TM) Pro B60 Graphics", "intel", 23.9, None, "vram", "Arc Pro B60", 456),
]
PROCESSORS = [
    ("AMD EPYC 7763 64-Core Processor", "amd", "EPYC 7003", 204.8),
    ("AMD EPYC 9354 32-Core Processor", "amd", "EPYC 9004", 460.8),
    ("AMD EPYC 9554P 64-Core Processor", "amd", "EPYC 9004", 460.8),
    ("AMD EPYC 9755 128-Core Processor", "amd", "EPYC 9005", 576),
    ("AMD Ryzen 9 5950X 16-Core Processor", "amd", "Ryzen 5000 (desktop)", 51.2),
    ("AMD Ryzen 7 7800X3D 8-Core Processor", "amd", "Ryzen 7000 (desktop)", 83.2),
    ("AMD Ryzen Threadripper PRO 7995WX 96-Cores", "amd", "Threadripper PRO 7000WX", 332.8),
    ("AMD Ryzen Threadripper 7970X 32-Cores", "amd", "Threadripper 7000", 166.4),
    ("Intel(R) Core(TM) i9-10900K CPU @ 3.70GHz", "intel", "Core of the 10th generation (desktop)", 46.93),
    ("Intel(R) Core(TM) Ultra 9 285K", "intel", "Core Ultra 200S", 102.4),
    ("Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz", "intel", "Xeon Scalable of the 1st and 2nd generation", 128),
    (
        "Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz",
        "intel",
        "Xeon Scalable of the 3rd generation (Ice Lake)",
        204.8,
    ),
    ("Intel(R) Xeon(R) Platinum 8480+", "intel", "Xeon Scalable of the 4th generation", 307.2),
    ("Raspberry Pi 5 Model B Rev 1.0", "arm", "Raspberry Pi 5", 17.07),
]


class TestRealNames:
    @pytest.mark.parametrize(("name", "gib", "known_as", "bandwidth"), NVIDIA)
    def test_nvidia(self, name: str, gib: float, known_as: str, bandwidth: float) -> None:
        found = figures_for(device(name, gib))
        assert found.known_as == known_as
        assert found.memory_bandwidth_bytes_per_s.value == pytest.approx(bandwidth * 1e9)
        assert found.memory_bandwidth_bytes_per_s.basis == "specified"

    @pytest.mark.parametrize(("name", "vendor", "gib", "units", "kind", "known_as", "bandwidth"), OTHERS)
    def test_others(
        self,
        name: str,
        vendor: str,
        gib: float,
        units: int | None,
        kind: MemoryKind,
        known_as: str,
        bandwidth: float,
    ) -> None:
        found = figures_for(device(name, gib, vendor, memory_kind=kind, units=units))
        assert found.known_as == known_as
        assert found.memory_bandwidth_bytes_per_s.value == pytest.approx(bandwidth * 1e9)
        assert found.memory_bandwidth_bytes_per_s.basis == "specified"

    @pytest.mark.parametrize(("name", "vendor", "known_as", "bandwidth"), PROCESSORS)
    def test_processors(self, name: str, vendor: str, known_as: str, bandwidth: float) -> None:
        found = figures_for(device(name, 64, vendor, memory_kind="ram", backend="cpu"))
        assert found.known_as == known_as
        assert found.memory_bandwidth_bytes_per_s.value == pytest.approx(bandwidth * 1e9, rel=1e-3)
        # How many of its channels are filled, nobody tells; what is soldered on is all there.
        assert found.memory_bandwidth_bytes_per_s.basis == (
            "specified" if "Raspberry" in name else "estimated"
        )

    def test_no_name_means_two_devices_with_the_same_memory(self) -> None:
        for name, gib, known_as, _ in NVIDIA:
            fitting = [
                one.device
                for one in matches(name, "gpu")
                if any(0.85 * size <= gib <= 1.03 * size for size in one.device.memory.gib)
            ]
            assert [one.name for one in fitting] == [known_as], name


class TestWords:
    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("Intel(R) Arc(TM) A770 Graphics", ("intel", "arc", "a770", "graphics")),
            ("NVIDIA A100-SXM4-80GB", ("nvidia", "a100", "sxm4", "80gb")),
            ("Xeon® Platinum 8480+", ("xeon", "platinum", "8480")),
            ("", ()),
            ("***", ()),
        ],
    )
    def test_are_free_of_marks(self, name: str, found: tuple[str, ...]) -> None:
        assert words(name) == found

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("AMD Radeon RX 6600", ("AMD Radeon RX 6600",)),
            ("AMD Radeon RX 7900 XT/7900 XTX", ("AMD Radeon RX 7900 XT", "AMD Radeon RX 7900 XTX")),
            (
                "AMD Radeon RX 6800/6800 XT / 6900 XT",
                ("AMD Radeon RX 6800", "AMD Radeon RX 6800 XT", "AMD Radeon RX 6900 XT"),
            ),
            (
                "AMD Radeon Graphics / Radeon 8060S Graphics",
                ("AMD Radeon Graphics", "AMD Radeon 8060S Graphics"),
            ),
            ("/", ("",)),
        ],
    )
    def test_of_lists_of_names(self, name: str, found: tuple[str, ...]) -> None:
        assert alternatives(name) == found
