"""What AMD's compute driver (KFD) writes into files: what a GPU is, and what each process holds on it."""

from pathlib import Path

import msgspec

from exo.gpu.backends.sysfs import read_lines, read_number
from exo.gpu.reading import ProcessMemory


class KfdNode(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU of the compute driver."""

    gpu_id: int
    pci_address: str
    architecture: str | None
    """Such as gfx1100."""
    compute_units: int | None
    has_processor: bool
    """It is one with the host's processor, and so is its memory."""


def nodes(sysfs: Path) -> dict[str, KfdNode]:
    """Return the GPUs by PCI address."""
    found: dict[str, KfdNode] = {}
    folders = sysfs / "class" / "kfd" / "kfd" / "topology" / "nodes"
    for folder in sorted(folders.glob("*")):
        gpu_id = read_number(folder / "gpu_id")
        said = {line[0]: line[1] for line in read_lines(folder / "properties") if len(line) == 2}
        numbers = {name: int(value) for name, value in said.items() if value.isdecimal()}
        if not gpu_id or "location_id" not in numbers:
            continue
        node = KfdNode(
            gpu_id=gpu_id,
            pci_address=_address(numbers.get("domain", 0), numbers["location_id"]),
            architecture=architecture(numbers.get("gfx_target_version", 0)),
            compute_units=_compute_units(numbers),
            has_processor=numbers.get("cpu_cores_count", 0) > 0,
        )
        found[node.pci_address] = node
    return found


def processes(sysfs: Path, gpu_id: int) -> tuple[ProcessMemory, ...] | None:
    """Return what each process holds on a GPU; None where the driver does not tell."""
    folder = sysfs / "class" / "kfd" / "kfd" / "proc"
    if not folder.is_dir():
        return None
    found: list[ProcessMemory] = []
    for one in sorted(folder.glob("*")):
        used_bytes = read_number(one / f"vram_{gpu_id}")
        if one.name.isdecimal() and used_bytes is not None:
            found.append(ProcessMemory(pid=int(one.name), used_bytes=used_bytes))
    return tuple(found)


def architecture(version: int) -> str | None:
    """Return the name of an architecture by its number: 90402 is gfx942, 90010 is gfx90a."""
    if version <= 0:
        return None
    return f"gfx{version // 10_000}{version // 100 % 100:x}{version % 100:x}"


def _compute_units(numbers: dict[str, int]) -> int | None:
    count, per_unit = numbers.get("simd_count", 0), numbers.get("simd_per_cu", 0)
    return count // per_unit or None if per_unit else None


def _address(domain: int, location: int) -> str:
    return f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"
