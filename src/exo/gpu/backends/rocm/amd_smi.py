"""Asks AMD's management library what the kernel's files do not tell: a card's name, errors of its memory.

It is an extra: without the library of the system its Python package fails at the import with a KeyError.
"""

import importlib
from typing import Any

from loguru import logger


class AmdSmi:
    """The library in this process, or nothing: everything is None then."""

    def __init__(self) -> None:
        self._module: Any = None
        self._handles: dict[str, Any] = {}

    def open(self) -> None:
        """Load it, if it can be."""
        try:
            module: Any = importlib.import_module("amdsmi")
            module.amdsmi_init()
        except Exception as error:
            logger.debug("AMD's management library is not used: {!r}", error)
            return
        self._module = module
        for handle in self._ask(module.amdsmi_get_processor_handles) or ():
            address = self._ask(module.amdsmi_get_gpu_device_bdf, handle)
            if address:
                self._handles[str(address).lower()] = handle

    def close(self) -> None:
        """Leave it. May be called twice."""
        module, self._module = self._module, None
        self._handles.clear()
        if module is not None:
            self._ask(module.amdsmi_shut_down)

    def name(self, pci_address: str) -> str | None:
        """Return what a card is sold as."""
        details: dict[str, Any] = self._of(pci_address, "amdsmi_get_gpu_asic_info") or {}
        name = details.get("market_name")
        # A card that it does not know is called by its number there.
        return (
            name if isinstance(name, str) and name not in {"", "N/A"} and not name.startswith("0x") else None
        )

    def memory_errors(self, pci_address: str) -> tuple[int | None, int | None]:
        """Return how many errors were (corrected, not corrected)."""
        counts: dict[str, Any] = self._of(pci_address, "amdsmi_get_gpu_total_ecc_count") or {}
        return _count(counts.get("correctable_count")), _count(counts.get("uncorrectable_count"))

    def _of(self, pci_address: str, function: str) -> Any:
        handle = self._handles.get(pci_address)
        return None if handle is None else self._ask(getattr(self._module, function, None), handle)

    @staticmethod
    def _ask(function: Any, *arguments: Any) -> Any:
        if function is None:
            return None
        try:
            return function(*arguments)
        except Exception as error:
            logger.debug("AMD's management library does not tell: {!r}", error)
            return None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
