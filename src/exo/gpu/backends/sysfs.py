"""What Linux's graphics drivers write into files: cards, sensors, names. A file that is missing or refused is None."""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

SYSFS = Path("/sys")
PCI_IDS = (Path("/usr/share/misc/pci.ids"), Path("/usr/share/hwdata/pci.ids"))
_CARD = re.compile(r"card\d+")


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """A graphics card of the kernel.

    Attributes:
        folder: Its folder under `class/drm`.
        device: The PCI device behind it.
        driver: The kernel's driver.
        pci_address: As `0000:03:00.0`.
        vendor_id: Four hexadecimal digits, as `device_id`.
    """

    folder: Path
    device: Path
    driver: str
    pci_address: str
    vendor_id: str
    device_id: str


def read_text(file: Path) -> str | None:
    """Return a file's content without the space around it."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def read_number(file: Path) -> int | None:
    """Return a whole number, also a hexadecimal one that says so."""
    text = read_text(file)
    try:
        return None if text is None else int(text, 0)
    except ValueError:
        return None


def read_bytes(file: Path) -> bytes | None:
    """Return a file's content as it is."""
    try:
        return file.read_bytes()
    except OSError:
        return None


def read_lines(file: Path) -> list[list[str]]:
    """Return the words of each line; nothing where there is no file."""
    return [line.split() for line in (read_text(file) or "").splitlines()]


def cards(sysfs: Path, drivers: frozenset[str]) -> list[Card]:
    """Return the cards of some drivers, in the order of their PCI addresses."""
    found: dict[str, Card] = {}
    for folder in _children(sysfs / "class" / "drm"):
        if not _CARD.fullmatch(folder.name):
            continue
        said = dict(
            line[0].split("=", 1) for line in read_lines(folder / "device" / "uevent") if "=" in line[0]
        )
        address, identity = said.get("PCI_SLOT_NAME", "").lower(), said.get("PCI_ID", "").lower()
        if said.get("DRIVER") in drivers and address and ":" in identity:
            vendor_id, _, device_id = identity.partition(":")
            found[address] = Card(
                folder=folder,
                device=folder / "device",
                driver=said["DRIVER"],
                pci_address=address,
                vendor_id=vendor_id,
                device_id=device_id,
            )
    return [found[address] for address in sorted(found)]


def has_pci_card(vendor_id: str, sysfs: Path = SYSFS) -> bool:
    """Say whether there is a graphics card or accelerator of a vendor, whichever driver it has, or none.

    Args:
        vendor_id: Four hexadecimal digits, as PCI has them: `10de`.
        sysfs: The kernel's folder.
    """
    for folder in _children(sysfs / "bus" / "pci" / "devices"):
        if read_number(folder / "vendor") == int(vendor_id, 16):
            # 03: display controllers, as all GPUs once were; 12: processing accelerators.
            kind = read_number(folder / "class")
            if kind is not None and kind >> 16 in (0x03, 0x12):
                return True
    return False


def is_asleep(card: Card) -> bool:
    """Say whether the card is switched off for want of work: to ask it for more would wake it."""
    return read_text(card.device / "power" / "runtime_status") == "suspended"


class Sensors:
    """A card's sensors (hwmon): values by kind and label, such as the temperature of the `junction`."""

    def __init__(self, card: Card) -> None:
        self._folders = sorted(_children(card.device / "hwmon"))

    def numbers(self, kind: str, labels: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
        """Yield (folder, prefix such as `temp2`) of the sensors of a kind, the first label's first."""
        found = [(folder, prefix) for folder in self._folders for prefix in self._prefixes(folder, kind)]
        for label in labels:
            yield from (one for one in found if (read_text(one[0] / f"{one[1]}_label") or "") == label)

    def read(self, kind: str, labels: tuple[str, ...], *suffixes: str) -> float | None:
        """Return the first value that there is, of the first label that has one, in the kernel's unit."""
        for folder, prefix in self.numbers(kind, labels):
            for suffix in suffixes:
                value = read_number(folder / f"{prefix}_{suffix}")
                if value is not None:
                    return float(value)
        return None

    @staticmethod
    def _prefixes(folder: Path, kind: str) -> list[str]:
        names = {file.name.split("_")[0] for file in _children(folder) if file.name.startswith(kind)}
        return sorted(name for name in names if name.removeprefix(kind).isdecimal())


def product_name(vendor_id: str, device_id: str, files: tuple[Path, ...] = PCI_IDS) -> str | None:
    """Return what the system's list of PCI devices calls one; what it is sold as stands in brackets there."""
    for file in files:
        is_vendor = False
        for line in (read_text(file) or "").splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if not line.startswith("\t"):
                is_vendor = line.lower().startswith(f"{vendor_id.lower()} ")
            elif is_vendor and line.lower().startswith(f"\t{device_id.lower()} "):
                name = line.strip().partition(" ")[2].strip()
                sold_as = re.search(r"\[(.+)\]\s*$", name)
                return sold_as[1] if sold_as else name
    return None


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
