"""What a node says of its devices in its log: what they are, and which engine can use them or what is missing."""

from collections.abc import Callable, Collection, Mapping, Sequence

from loguru import logger

from exo.shared.types.devices import Backend, GPUDevice


class DeviceAnnouncer:
    """Says of each engine and kind of device once whether they fit together: also of a GPU that appears late.

    Args:
        engine_backends: The kinds of devices that each engine can use, as it is installed here.
        missing_build: Returns what installs an engine for a kind of device; None: nothing does.
    """

    def __init__(
        self,
        engine_backends: Mapping[str, Collection[Backend]],
        missing_build: Callable[[str, Backend], str | None],
    ) -> None:
        self._engine_backends = engine_backends
        self._missing_build = missing_build
        self._told: set[tuple[str, Backend]] = set()

    def started(self, devices: Sequence[GPUDevice]) -> None:
        """Say what there is at the node's start."""
        for device in devices:
            kind = "Processor" if device.backend == "cpu" else "GPU detected"
            logger.info("{}: {} ({:.1f} GiB)", kind, device.name, device.memory_total_bytes / 2**30)
        self.now_there(devices)

    def now_there(self, devices: Sequence[GPUDevice]) -> None:
        """Say what the engines make of the devices that are there now, as far as it was not said before."""
        # No layers are placed on what is played: nothing is missing for it.
        found: set[Backend] = {
            device.backend for device in devices if device.backend != "cpu" and not device.is_simulated
        }
        for engine, usable in self._engine_backends.items():
            for backend in sorted(found):
                if (engine, backend) in self._told:
                    continue
                self._told.add((engine, backend))
                if backend in usable:
                    logger.info("Using {} {} backend", engine.upper(), backend.upper())
                    continue
                command = self._missing_build(engine, backend)
                logger.warning(
                    "GPU detected but {} has no {} build: running on CPU{}",
                    engine.upper(),
                    backend.upper(),
                    f". Install with {command}" if command else "",
                )
