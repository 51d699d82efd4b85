"""From a device as its driver tells of it to what it can do: measured before specified before estimated. Pure."""

import math
from typing import TypeGuard

from msgspec.structs import replace

from exo.shared.device_figures import estimates
from exo.shared.device_figures.catalogue import Kind, KnownDevice
from exo.shared.device_figures.estimates import GIB, GIGA, TERA
from exo.shared.device_figures.figures import DeviceFigures, Figure, MeasuredFigures, Precision
from exo.shared.device_figures.naming import Match, matches, words
from exo.shared.types.devices import GPUDevice

_LEAST_OF_SIZE, _MOST_OF_SIZE = 0.85, 1.03
"""What a driver says there is, in parts of the size it is sold with: error correction and firmware take some."""
_LEAST_OF_HOST = 0.7
"""The same where the memory is the host's, of which the system keeps more to itself."""
_MOBILE_SHARE = 0.6
"""GeForce 30 and 40 for laptops have between 0.51 and 0.94 of the desktop card's bandwidth; most about this."""
_CORES_SHARE = 0.5
"""The cores of a chip that shares its memory with a GPU cannot load it fully: Apple's M1 Max reaches 0.6 of it."""
_BANDWIDTH_MAX = 1e15
_FLOPS_MAX = 1e19
_UNITS_OF_WHOLE_MIG = 7
_VENDORS = frozenset(("nvidia", "amd", "intel", "apple", "arm"))


def figures_for(device: GPUDevice, measured: MeasuredFigures | None = None) -> DeviceFigures:
    """Return what a device can do, whatever it is: never an error, and never a figure without where it is from.

    Args:
        device: As its driver tells of it. What it says of its own bandwidth and FLOP/s counts before the catalogue.
        measured: What was measured on it, which counts for more still; None: what the device itself brings of that.
    """
    kind: Kind = "processor" if device.backend == "cpu" or device.memory_kind == "ram" else "gpu"
    candidates = _narrowed(device, matches(device.name, kind))
    exact = [one.device for one in candidates if not one.extra_words]
    if kind == "processor":
        found = _of_processor(device, exact)
    elif "mig" in words(device.name):
        found = _of_part(device, [one.device for one in candidates])
    elif exact:
        found = _of_known(device, exact)
    else:
        found = _of_unknown(device, candidates)
    return _corrected(found, device, measured or _told_as_measured(device, kind))


def _narrowed(device: GPUDevice, found: tuple[Match, ...]) -> list[Match]:
    """Leave out those of another maker, and, while others remain, those with another memory or number of units."""
    vendor = device.vendor.lower()
    kept = [one for one in found if vendor not in _VENDORS or one.device.vendor == vendor]
    for fits in (_fits_memory, _fits_units):
        kept = [one for one in kept if fits(device, one.device)] or kept
    return kept


def _fits_memory(device: GPUDevice, known: KnownDevice) -> bool:
    least = _LEAST_OF_SIZE if known.memory_kind == "vram" else _LEAST_OF_HOST
    return not known.memory.gib or any(
        least * size <= device.memory_total_bytes / GIB <= _MOST_OF_SIZE * size for size in known.memory.gib
    )


def _fits_units(device: GPUDevice, known: KnownDevice) -> bool:
    return not device.compute_units or not known.compute.units or device.compute_units in known.compute.units


def _of_known(device: GPUDevice, found: list[KnownDevice]) -> DeviceFigures:
    """Return the figures of the one device that it is, or what all that it may be have at least."""
    each = [_specified(device, one) for one in found]
    if len(each) == 1:
        if _fits_memory(device, found[0]):
            return each[0]
        reason = f"a {found[0].name} with {device.memory_total_bytes / GIB:.1f} GiB is not in the catalogue"
        return _as_estimate(each[0], reason)
    names = ", ".join(one.name for one in found)
    bandwidths = [one.memory_bandwidth_bytes_per_s for one in each]
    common: list[Precision] = [
        one for one in estimates.PRECISIONS if all(one in other.flops_per_s for other in each)
    ]
    reason = f"it may be any of {names}: as the slowest of them"
    return DeviceFigures(
        known_as=" or ".join(one.name for one in found),
        memory_bandwidth_bytes_per_s=_agreed(bandwidths, reason),
        flops_per_s={one: _agreed([other.flops_per_s[one] for other in each], reason) for one in common},
        pcie_generation=each[0].pcie_generation if len({one.pcie_generation for one in each}) == 1 else None,
    )


def _agreed(figures: list[Figure], reason: str) -> Figure:
    if len({one.value for one in figures}) == 1:
        return figures[0]
    return Figure(estimates.lowest(figures).value, "estimated", reason)


def _specified(device: GPUDevice, known: KnownDevice) -> DeviceFigures:
    told = known.memory.bandwidth_gb_per_s
    if told is None:
        bandwidth = estimates.missing_bandwidth(known) or estimates.of_class(device)[0]
    elif known.doubt is not None:
        bandwidth = Figure(told * GIGA, "estimated", f"{known.sources.bandwidth}; {known.doubt}")
    else:
        bandwidth = Figure(told * GIGA, "specified", known.sources.bandwidth)
    flops = _specified_compute(device, known)
    if "float32" not in flops:
        flops = estimates.missing_compute(known, device.compute_units) | flops
    if "float32" not in flops:
        flops = estimates.of_class(device)[1] | flops
    return DeviceFigures(
        known_as=known.name,
        memory_bandwidth_bytes_per_s=bandwidth,
        flops_per_s=flops,
        pcie_generation=known.pcie_generation,
    )


def _specified_compute(device: GPUDevice, known: KnownDevice) -> dict[Precision, Figure]:
    """Return what its maker tells, in proportion to its units where there are fewer than those it is told of."""
    figures = known.compute.tera_flops_per_s
    sold = known.compute.units
    units = device.compute_units
    if not sold or units == sold[0] or (len(sold) == 1 and not units):
        return {
            one: Figure(value * TERA, "specified", known.sources.compute) for one, value in figures.items()
        }
    # A number that no such chip can have is no number.
    count = units if units and 0 < units <= 2 * sold[0] else min(sold)
    reason = f"{known.sources.compute}; in proportion to {count} of {sold[0]} units"
    if not units:
        reason += ", because it does not tell how many it has"
    return {
        one: Figure(value * TERA * count / sold[0], "estimated", reason) for one, value in figures.items()
    }


def _of_part(device: GPUDevice, found: list[KnownDevice]) -> DeviceFigures:
    """Return the figures of a part of a divided GPU, such as `A100-SXM4-40GB MIG 3g.20gb`: a share of the whole."""
    whole = next((one for one in found if one.memory.gib), None)
    if whole is None:
        return _of_unknown(device, [])
    said = words(device.name)
    slices = next((int(one[:-1]) for one in said if one[:-1].isdecimal() and one.endswith("g")), 1)
    memory_share = min(1.0, max(0.0, device.memory_total_bytes / GIB) / max(whole.memory.gib))
    compute_share = min(1.0, slices / _UNITS_OF_WHOLE_MIG)
    figures = _specified(replace(device, compute_units=None), whole)
    reason = f"a part of the {whole.name}: its share of the memory and of the multiprocessors"
    bandwidth = figures.memory_bandwidth_bytes_per_s.value * max(memory_share, 1 / 8)
    return DeviceFigures(
        known_as=whole.name,
        memory_bandwidth_bytes_per_s=Figure(bandwidth, "estimated", reason),
        flops_per_s={
            one: Figure(value.value * compute_share, "estimated", reason)
            for one, value in figures.flops_per_s.items()
        },
        pcie_generation=figures.pcie_generation,
    )


def _of_unknown(device: GPUDevice, relatives: list[Match]) -> DeviceFigures:
    """Return the figures of a relative, made smaller where the name says so, or of a device's class."""
    # Apple's Pro, Max and Ultra are other chips: the number of their cores tells more than the name.
    relatives = [one for one in relatives if one.device.memory_kind == "vram"]
    if relatives:
        slowest = min(relatives, key=lambda one: one.device.memory.bandwidth_gb_per_s or math.inf)
        extra = " ".join(sorted(slowest.extra_words))
        share = _MOBILE_SHARE if slowest.is_mobile else 1.0
        reason = (
            f"'{device.name[:60]}' is not in the catalogue; the {slowest.device.name} is, without '{extra}'"
        )
        if slowest.is_mobile:
            reason += f", of which a laptop's has about {_MOBILE_SHARE:.0%}"
        relative = replace(_specified(device, slowest.device), known_as=None)
        return _as_estimate(relative, reason, share)
    bandwidth, flops = estimates.of_class(device)
    return DeviceFigures(known_as=None, memory_bandwidth_bytes_per_s=bandwidth, flops_per_s=flops)


def _as_estimate(figures: DeviceFigures, reason: str, share: float = 1.0) -> DeviceFigures:
    return DeviceFigures(
        known_as=figures.known_as,
        memory_bandwidth_bytes_per_s=Figure(
            figures.memory_bandwidth_bytes_per_s.value * share, "estimated", reason
        ),
        flops_per_s={
            one: Figure(value.value * share, "estimated", reason)
            for one, value in figures.flops_per_s.items()
        },
        pcie_generation=figures.pcie_generation,
    )


def _of_processor(device: GPUDevice, found: list[KnownDevice]) -> DeviceFigures:
    """Return what its cores can do; how many of its memory channels are filled, nobody tells."""
    chips = matches(device.name, "gpu")
    known = min(found, key=lambda one: one.memory.bandwidth_gb_per_s or math.inf) if found else None
    per_clock = None if known is None else known.compute.float32_per_core_and_clock
    if known is not None and known.memory.bandwidth_gb_per_s:
        reason = known.sources.bandwidth
        if known.is_memory_socketed:
            reason = (
                f"{known.name}: as if every channel of its memory were filled ({known.sources.bandwidth})"
            )
        if known.doubt is not None:
            reason += f"; {known.doubt}"
        bandwidth = Figure(
            known.memory.bandwidth_gb_per_s * GIGA,
            "estimated" if known.is_memory_socketed or known.doubt else "specified",
            reason,
        )
    elif chips and chips[0].device.memory_kind == "unified" and chips[0].device.memory.bandwidth_gb_per_s:
        slowest = min(one.device.memory.bandwidth_gb_per_s or math.inf for one in chips)
        reason = (
            f"the cores of the {chips[0].device.name} get about {_CORES_SHARE:.0%} of what the whole chip has"
        )
        bandwidth = Figure(slowest * GIGA * _CORES_SHARE, "estimated", reason)
    else:
        bandwidth = estimates.processor_bandwidth(device)
    return DeviceFigures(
        known_as=None if known is None else known.name,
        memory_bandwidth_bytes_per_s=bandwidth,
        flops_per_s={"float32": estimates.processor_compute(device, per_clock)},
    )


def _told_as_measured(device: GPUDevice, kind: Kind) -> MeasuredFigures:
    precision: Precision = "float32" if kind == "processor" else "float16"
    flops = device.measured_flops_per_s
    return MeasuredFigures(
        memory_bandwidth_bytes_per_s=device.measured_memory_bandwidth_bytes_per_s,
        flops_per_s={} if flops is None else {precision: flops},
    )


def _corrected(figures: DeviceFigures, device: GPUDevice, measured: MeasuredFigures) -> DeviceFigures:
    """Put what the driver tells in the place of the catalogue, and what was measured in the place of both."""
    bandwidth = figures.memory_bandwidth_bytes_per_s
    told, seen = device.memory_bandwidth_bytes_per_s, measured.memory_bandwidth_bytes_per_s
    if _is_sane(seen, _BANDWIDTH_MAX):
        bandwidth = Figure(seen, "measured", "measured on this device")
    elif _is_sane(told, _BANDWIDTH_MAX):
        bandwidth = Figure(told, "specified", "its driver")
    flops = dict(figures.flops_per_s)
    if _is_sane(device.flops_per_s, _FLOPS_MAX):
        # The driver tells one number, of the precision that models are run in.
        own: Precision = "float16" if "float16" in flops or device.backend != "cpu" else "float32"
        flops[own] = Figure(device.flops_per_s, "specified", "its driver")
    for precision, value in measured.flops_per_s.items():
        if _is_sane(value, _FLOPS_MAX):
            flops[precision] = Figure(value, "measured", "measured on this device")
    return replace(figures, memory_bandwidth_bytes_per_s=bandwidth, flops_per_s=flops)


def _is_sane(value: float | None, most: float) -> TypeGuard[float]:
    return value is not None and math.isfinite(value) and 0 < value <= most
