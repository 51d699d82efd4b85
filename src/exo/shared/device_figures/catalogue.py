"""The devices that are known, read from the files in `data/`: what their makers say of them."""

from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from exo.shared.device_figures.figures import Precision
from exo.shared.types.devices import MemoryKind

Kind = Literal["gpu", "processor"]


class Sources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which publication each kind of figure is from."""

    memory: str
    bandwidth: str
    compute: str


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's memory. `gib` has every size that it is sold with; empty: it has the host's."""

    gib: tuple[float, ...] = ()
    type: str | None = None
    bus_bits: int | None = None
    rate_mt_per_s: float | None = None
    """Million transfers per second and line."""
    bandwidth_gb_per_s: float | None = None
    """10^9 bytes per second."""


class Compute(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device computes with; none of it where no maker tells."""

    units: tuple[int, ...] = ()
    """Multiprocessors, compute units, Xe or GPU cores: first the number that the FLOP/s are of, then others sold."""
    clock_mhz: float | None = None
    tera_flops_per_s: dict[Precision, float] = {}
    """10^12 operations per second, without sparsity; a multiplication with its addition counts as two."""
    float32_per_core_and_clock: int | None = None
    """Of processors, whose cores and clock the node tells."""


class KnownDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device of the catalogue."""

    name: str
    patterns: tuple[str, ...]
    """Words that its driver's name has, one after the other; `?` is any one letter, `*` any one word."""
    vendor: str
    kind: Kind
    family: str
    architecture: str
    memory_kind: MemoryKind
    is_memory_socketed: bool
    memory: Memory
    compute: Compute
    pcie_generation: int | None
    doubt: str | None
    """What else the same name may mean, which is why its bandwidth is an estimate."""
    sources: Sources


class _Overrides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    memory: str | None = None
    bandwidth: str | None = None
    compute: str | None = None


class _Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    patterns: tuple[str, ...]
    memory: Memory
    compute: Compute = Compute()
    architecture: str | None = None
    memory_kind: MemoryKind | None = None
    pcie_generation: int | None = None
    doubt: str | None = None
    sources: _Overrides = _Overrides()


class _Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    vendor: str
    kind: Kind
    architecture: str
    memory_kind: MemoryKind
    sources: Sources
    devices: tuple[_Device, ...]
    pcie_generation: int | None = None
    is_memory_socketed: bool = False


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    families: tuple[_Family, ...]


@cache
def catalogue() -> tuple[KnownDevice, ...]:
    """Return all devices; reads the files once, which takes some hundredths of a second."""
    found: list[KnownDevice] = []
    folder = files("exo.shared.device_figures") / "data"
    for file in sorted(folder.iterdir(), key=lambda one: one.name):
        if file.name.endswith(".toml"):
            for family in msgspec.toml.decode(file.read_bytes(), type=_File).families:
                found += [_known(family, one) for one in family.devices]
    return tuple(found)


def _known(family: _Family, device: _Device) -> KnownDevice:
    own, shared = device.sources, family.sources
    return KnownDevice(
        name=device.name,
        patterns=device.patterns,
        vendor=family.vendor,
        kind=family.kind,
        family=family.name,
        architecture=device.architecture or family.architecture,
        memory_kind=device.memory_kind or family.memory_kind,
        is_memory_socketed=family.is_memory_socketed,
        memory=device.memory,
        compute=device.compute,
        pcie_generation=device.pcie_generation or family.pcie_generation,
        doubt=device.doubt,
        sources=Sources(
            memory=own.memory or shared.memory,
            bandwidth=own.bandwidth or shared.bandwidth,
            compute=own.compute or shared.compute,
        ),
    )
