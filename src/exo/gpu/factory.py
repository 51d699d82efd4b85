"""Which backends to try on this platform, in order, and what became of each."""

from collections.abc import Callable, Sequence

import msgspec

from exo.gpu.backend import GPUBackend
from exo.gpu.backends.cpu import CPUDriver
from exo.gpu.errors import BackendUnavailableError
from exo.gpu.threaded import ThreadedBackend
from exo.shared.types.devices import GPUDevice
from exo.shared.types.ids import NodeId


class MissingBackend(msgspec.Struct, frozen=True, kw_only=True):
    """A backend that does not work here, and what to do about it."""

    name: str
    reason: str


class GPUBackendFactory:
    """Initialises every backend that works; one that does not never stops the node."""

    def __init__(self, makers: Sequence[Callable[[], GPUBackend]]) -> None:
        self._makers = tuple(makers)
        self.missing: list[MissingBackend] = []

    @staticmethod
    def for_this_platform(node_id: NodeId) -> "GPUBackendFactory":
        """The backends of this platform, preferred first; the CPU is always the last."""
        return GPUBackendFactory([lambda: ThreadedBackend(CPUDriver(), node_id)])

    async def create_all(self) -> list[GPUBackend]:
        """Initialise the backends; those that fail are listed in `missing` with the reason."""
        working: list[GPUBackend] = []
        self.missing = []
        for make in self._makers:
            backend = make()
            try:
                await backend.initialize()
            except BackendUnavailableError as error:
                self.missing.append(MissingBackend(name=backend.name, reason=error.message))
                continue
            working.append(backend)
        return working


async def devices_of(backends: Sequence[GPUBackend]) -> list[tuple[GPUBackend, GPUDevice]]:
    """Every device with the backend that reads it, sorted by device id."""
    pairs = [(backend, device) for backend in backends for device in await backend.list_devices()]
    return sorted(pairs, key=lambda pair: pair[1].device_id)
