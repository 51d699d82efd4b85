"""What watchers of graphics cards have in common that read the kernel's files: which cards there are, and words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from loguru import logger

from exo.gpu.backends.sysfs import Card, cards, has_pci_card, product_name
from exo.gpu.errors import BackendUnavailableError, DeviceLostError, DeviceNotFoundError


class CardBook:
    """A vendor's cards, each under an index that it keeps while others come and go.

    Args:
        vendor: As people write it.
        vendor_id: Four hexadecimal digits, as PCI has them.
        drivers: Of the kernel.
        sysfs: Where the kernel's files are.
        pci_ids: Lists of names.
        order: Sorts the cards before they are counted; None: as their addresses.
    """

    def __init__(
        self,
        vendor: str,
        vendor_id: str,
        drivers: tuple[str, ...],
        *,
        sysfs: Path,
        pci_ids: tuple[Path, ...],
        order: Callable[[Card], Any] | None = None,
    ) -> None:
        self._vendor = vendor
        self._vendor_id = vendor_id
        self._drivers = drivers
        self._sysfs = sysfs
        self._pci_ids = pci_ids
        self._order = order
        self._cards: dict[int, Card] = {}
        self._indices: dict[str, int] = {}
        self._complaints: set[str] = set()

    def check(self) -> None:
        """Return where there is a card.

        Raises:
            BackendUnavailableError: There is none, or it has no driver.
        """
        if self._present():
            return
        names = " or ".join(self._drivers)
        seen = f"see what `sudo dmesg | grep -E '{'|'.join(self._drivers)}'` says"
        if has_pci_card(self._vendor_id, self._sysfs):
            raise BackendUnavailableError(
                f"there is an {self._vendor} GPU without the kernel's driver {names}: {seen}, and install a newer "
                "kernel or the driver with the system's package manager"
            )
        raise BackendUnavailableError(
            f"there is no {self._vendor} GPU (no card of the kernel's driver {names}): if there is one, {seen}",
            is_absent=True,
        )

    def clear(self) -> None:
        """Forget all of them."""
        self._cards.clear()
        self._indices.clear()

    def look(self) -> list[tuple[int, Card]]:
        """Return the cards that are there now, with their indices."""
        found: list[tuple[int, Card]] = []
        for card in self._present():
            index = self._indices.setdefault(card.pci_address, len(self._indices))
            self._cards[index] = card
            found.append((index, card))
        return found

    def card(self, index: int) -> Card:
        """Return a card that is there.

        Raises:
            DeviceNotFoundError: There never was one with this index.
            DeviceLostError: It is gone.
        """
        card = self._cards.get(index)
        if card is None:
            raise DeviceNotFoundError(f"there is no {self._vendor} device {index}: look for devices again")
        if not card.device.exists():
            raise self.lost(card, "is not there any more")
        return card

    def lost(self, card: Card, what: str) -> DeviceLostError:
        """Return the error for a card that does no longer do what it did."""
        return DeviceLostError(
            f"the {self._vendor} GPU at {card.pci_address} {what}: see what `sudo dmesg` says"
        )

    def name(self, card: Card, said: str | None = None) -> str:
        """Return what people call a card, its maker first.

        Args:
            card: The card.
            said: What it or its driver calls it; None: they do not say.
        """
        name = said or product_name(card.vendor_id, card.device_id, self._pci_ids) or f"GPU {card.device_id}"
        return name if name.upper().startswith(self._vendor.upper()) else f"{self._vendor} {name}"

    def complain(self, message: str) -> None:
        """Log something of a card, once."""
        if message not in self._complaints:
            self._complaints.add(message)
            logger.warning("{}: {}", self._vendor, message)

    def _present(self) -> list[Card]:
        found = cards(self._sysfs, frozenset(self._drivers))
        return found if self._order is None else sorted(found, key=self._order)
