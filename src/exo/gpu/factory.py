"""Which backends to try on this platform, in which order."""

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

import msgspec
from msgspec.structs import replace

from exo.gpu.backend import GPUBackend
from exo.gpu.driver import Driver
from exo.gpu.limits import CallLimits
from exo.gpu.threaded import ThreadedBackend
from exo.shared.errors import ConfigurationError
from exo.shared.types.devices import Backend
from exo.shared.types.ids import NodeId

_DRIVERS: Mapping[Backend, tuple[str, str]] = {
    "cuda": ("exo.gpu.backends.cuda.driver", "CUDADriver"),
    "rocm": ("exo.gpu.backends.rocm.driver", "ROCmDriver"),
    "intel": ("exo.gpu.backends.intel.driver", "IntelDriver"),
    "metal": ("exo.gpu.backends.metal.driver", "MetalDriver"),
    "directml": ("exo.gpu.backends.directml.driver", "DirectMLDriver"),
    "tflite": ("exo.gpu.backends.tflite.driver", "TFLiteDriver"),
    "cpu": ("exo.gpu.backends.cpu", "CPUDriver"),
}
"""Module and class. A module is imported when its backend is tried, a vendor's library when its driver is opened."""

_IMPORTING = threading.Lock()
"""Drivers are made in threads of their own, and share modules: two that import them at once can wait for each other."""

_ORDER: Mapping[str, tuple[Backend, ...]] = {
    "linux": ("cuda", "rocm", "intel", "cpu"),
    "darwin": ("metal", "cpu"),
    "win32": ("cuda", "directml", "cpu"),
    "android": ("tflite", "cpu"),
}
"""Preferred first. Of two that claim one device the first has it."""


class DriverMaker(msgspec.Struct, frozen=True, kw_only=True):
    """A backend to try."""

    name: Backend
    make: Callable[[], Driver]
    is_chosen: bool = False
    """The user asked for it: that it is missing is news, then."""


class GPUBackendFactory:
    """Makes the backends of a node; none of them is started here.

    Args:
        makers: What to try, preferred first.
        node_id: Begins the devices' ids.
        limits: How long their drivers' calls may take.
    """

    def __init__(
        self, makers: Sequence[DriverMaker], node_id: NodeId, *, limits: CallLimits | None = None
    ) -> None:
        self.makers = tuple(makers)
        self._node_id = node_id
        self._limits = limits

    @staticmethod
    def for_this_platform(
        node_id: NodeId, *, environment: Mapping[str, str] = os.environ, system: str | None = None
    ) -> "GPUBackendFactory":
        """Return the backends of this platform; the CPU is always the last.

        `EXO_GPU_BACKEND` chooses others: names with commas between them, such as `cuda`, or `simulated:FILE`.

        Args:
            node_id: This node.
            environment: Where the variable is looked up.
            system: As in `sys.platform`; None: this one.

        Raises:
            ConfigurationError: The variable names no backend, or a file that cannot be played.
        """
        system = system or ("android" if hasattr(sys, "getandroidapilevel") else sys.platform)
        chosen = environment.get("EXO_GPU_BACKEND", "").strip()
        if chosen:
            makers = [_chosen(word.strip()) for word in chosen.split(",") if word.strip()]
        else:
            makers = [_maker(name) for name in order(system)]
        if "cpu" not in {one.name for one in makers}:
            makers.append(_maker("cpu"))
        return GPUBackendFactory(makers, node_id)

    def make(self, maker: DriverMaker) -> GPUBackend:
        """Return a new backend, not started.

        Raises:
            ImportError: Its module cannot be imported.
        """
        return ThreadedBackend(maker.make(), self._node_id, limits=self._limits)


def order(system: str) -> tuple[Backend, ...]:
    """Return the backends that exist for a platform, preferred first."""
    return _ORDER.get(system, ("cpu",))


def _maker(name: Backend) -> DriverMaker:
    module, driver = _DRIVERS[name]

    def make() -> Driver:
        with _IMPORTING:
            kind: Callable[[], Driver] = getattr(import_module(module), driver)
        return kind()

    return DriverMaker(name=name, make=make)


def _chosen(word: str) -> DriverMaker:
    name, _, file = word.partition(":")
    if name == "simulated" and file:
        from exo.gpu.backends.simulated.driver import SimulatedDriver
        from exo.gpu.backends.simulated.machine import load_machine

        machine = load_machine(Path(file).expanduser())
        return DriverMaker(name="simulated", make=lambda: SimulatedDriver(machine), is_chosen=True)
    if word not in _DRIVERS:
        names = ", ".join([*_DRIVERS, "simulated:FILE"])
        raise ConfigurationError(f"EXO_GPU_BACKEND={word} is no backend; choose of {names}, or unset it")
    return replace(_maker(cast(Backend, word)), is_chosen=True)
