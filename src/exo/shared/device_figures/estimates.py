"""Figures that nobody tells, made from those of devices alike: never a number out of nowhere. Pure."""

import math
from collections.abc import Iterable, Sequence
from statistics import median_low

from exo.shared.device_figures.catalogue import KnownDevice, catalogue
from exo.shared.device_figures.figures import Figure, Precision
from exo.shared.types.devices import GPUDevice

GIB = 1024**3
GIGA = 1e9
TERA = 1e12
_NEAR = 1.5
"""Memory sizes that differ by no more than this factor are of one class."""
_NEAREST_COUNT = 3
_DESKTOP_BUS_BITS = 128
_CORE_OPERATIONS_PER_CLOCK = {"arm": 16, "apple": 32}
"""FP32 operations of one core and clock at least: NEON with two units has 16, AVX2 with two has 32."""
_CORE_CLOCK_MHZ = 2000.0
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16", "int8", "int4")


def missing_bandwidth(known: KnownDevice) -> Figure | None:
    """Return the bandwidth of a known device whose maker tells none, by its bus and the usual rate of its memory."""
    rates = [
        one.memory.rate_mt_per_s
        for one in catalogue()
        if one.memory.type == known.memory.type and one.memory.rate_mt_per_s
    ]
    if known.memory.bus_bits is None or not rates:
        return None
    value = known.memory.bus_bits / 8 * median_low(rates) * 1e6
    return Figure(
        value,
        "estimated",
        f"{known.name}: its maker tells no data rate; {known.memory.bus_bits} bits of {known.memory.type} "
        "at its usual rate",
    )


def missing_compute(known: KnownDevice, units: int | None) -> dict[Precision, Figure]:
    """Return the FLOP/s of a known device whose maker tells none, by those of one unit of its relatives."""
    count = units or (min(known.compute.units) if known.compute.units else None)
    alike = [one for one in catalogue() if one.kind == known.kind]
    reason = f"{known.name}: its maker tells no FLOP/s; {count} units as of others of its"
    siblings = [one for one in alike if one.architecture == known.architecture]
    cousins = [one for one in alike if (one.vendor, one.memory_kind) == (known.vendor, known.memory_kind)]
    return _by_units(siblings, count, f"{reason} architecture") or _by_units(
        cousins, count, f"{reason} maker"
    )


def _by_units(relatives: Sequence[KnownDevice], count: int | None, reason: str) -> dict[Precision, Figure]:
    """Return the FLOP/s of so many units, each as the lower median of relatives has them; nothing without FP32."""
    found: dict[Precision, Figure] = {}
    if not count or count < 1:
        return found
    for precision in PRECISIONS:
        per_unit = [
            _of(one, precision) / one.compute.units[0]
            for one in relatives
            if one.compute.units and _of(one, precision)
        ]
        if per_unit:
            found[precision] = Figure(median_low(per_unit) * count * TERA, "estimated", reason)
    return found if "float32" in found else {}


def of_class(device: GPUDevice) -> tuple[Figure, dict[Precision, Figure]]:
    """Return (bytes/s, FLOP/s) of a GPU that is not known: the lower median of those of its maker and memory size."""
    gpus = [one for one in catalogue() if one.kind == "gpu"]
    if device.memory_kind == "unified" and device.vendor in ("intel", "amd"):
        return _of_desktop(device)
    alike = [one for one in gpus if one.memory_kind == device.memory_kind] or gpus
    maker = [one for one in alike if one.vendor == device.vendor]
    pool = _near(device, maker or alike)
    whose = f"{device.vendor} GPUs" if maker else "GPUs of all makers"
    reason = (
        f"'{_shown(device.name)}' is not in the catalogue; as the median of {len(pool)} {whose} "
        f"with about as much {_called(device)}"
    )
    bandwidth = median_low([one.memory.bandwidth_gb_per_s for one in pool if one.memory.bandwidth_gb_per_s])
    compute = {}
    if device.memory_kind == "unified":
        compute = _by_units(
            maker, device.compute_units, f"{reason}; FLOP/s by its {device.compute_units} units"
        )
    return Figure(bandwidth * GIGA, "estimated", reason), compute or _median_compute(pool, reason)


def processor_bandwidth(device: GPUDevice) -> Figure:
    """Return the bytes/s of a processor that is not known: those of a desktop's with two channels."""
    return Figure(
        _desktop_bandwidth(),
        "estimated",
        f"the processor '{_shown(device.name)}' is not in the catalogue; as of one with two channels of memory",
    )


def processor_compute(device: GPUDevice, per_core_and_clock: int | None) -> Figure:
    """Return the FP32 operations per second of a processor, by its cores and their clock."""
    per_clock = per_core_and_clock or _CORE_OPERATIONS_PER_CLOCK.get(device.vendor, 32)
    cores = device.compute_units if device.compute_units and device.compute_units > 0 else 1
    told = device.clock_mhz
    clock_mhz = told if told and math.isfinite(told) and 100 <= told <= 10_000 else _CORE_CLOCK_MHZ
    reason = f"{cores} cores at {clock_mhz:.0f} MHz with {per_clock} FP32 operations per clock"
    if clock_mhz != told:
        reason += ", the clock being unknown"
    return Figure(cores * clock_mhz * 1e6 * per_clock, "estimated", reason)


def _of_desktop(device: GPUDevice) -> tuple[Figure, dict[Precision, Figure]]:
    reason = f"'{_shown(device.name)}' is not in the catalogue; a GPU within a processor, with two channels of memory"
    cards = [one for one in catalogue() if (one.vendor, one.kind) == (device.vendor, "gpu")]
    smallest = min(_of(one, "float32") or math.inf for one in cards)
    return Figure(_desktop_bandwidth(), "estimated", reason), {
        "float32": Figure(smallest * TERA, "estimated", f"{reason}; FP32 as the smallest card of its maker")
    }


def _desktop_bandwidth() -> float:
    return GIGA * median_low(
        [
            one.memory.bandwidth_gb_per_s
            for one in catalogue()
            if one.kind == "processor"
            and one.memory.bus_bits == _DESKTOP_BUS_BITS
            and one.memory.bandwidth_gb_per_s
        ]
    )


def _median_compute(pool: Sequence[KnownDevice], reason: str) -> dict[Precision, Figure]:
    """Only `float32` and what most of them have: an unknown device need not have the newest arithmetic."""
    found: dict[Precision, Figure] = {}
    for precision in PRECISIONS:
        values = [_of(one, precision) for one in pool if _of(one, precision)]
        if values and 2 * len(values) > len(pool):
            found[precision] = Figure(median_low(values) * TERA, "estimated", reason)
    if "float32" not in found:
        every = [_of(one, "float32") for one in catalogue() if one.kind == "gpu" and _of(one, "float32")]
        found["float32"] = Figure(
            median_low(every) * TERA, "estimated", f"{reason}; FP32 as the median of all GPUs"
        )
    return found


def _near(device: GPUDevice, pool: Sequence[KnownDevice]) -> list[KnownDevice]:
    """Return those with about as much memory; where they share the host's, with about as many units."""
    rated = [one for one in pool if one.memory.bandwidth_gb_per_s]
    distances = sorted(((_distance(device, one), at) for at, one in enumerate(rated)), key=lambda one: one)
    near = [rated[at] for distance, at in distances if distance <= math.log(_NEAR)]
    return near or [rated[at] for _, at in distances[:_NEAREST_COUNT]]


def _distance(device: GPUDevice, known: KnownDevice) -> float:
    if known.memory.gib:
        have = max(device.memory_total_bytes / GIB, 0.25)
        return min(abs(math.log(have / size)) for size in known.memory.gib)
    if device.compute_units and device.compute_units > 0 and known.compute.units:
        return min(abs(math.log(device.compute_units / count)) for count in known.compute.units)
    return 0.0


def _of(known: KnownDevice, precision: Precision) -> float:
    return known.compute.tera_flops_per_s.get(precision, 0.0)


def _called(device: GPUDevice) -> str:
    return "memory" if device.memory_kind == "vram" else "memory or as many cores"


def _shown(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}..."


def lowest(figures: Iterable[Figure]) -> Figure:
    """Return the smallest: what can be counted on, whichever it is."""
    return min(figures, key=lambda one: one.value)
