"""Metal as the contract suite of backends sees it: the real MLX on its CPU device, and a system that tells little."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from exo.gpu.backends.metal import MetalDriver
from exo.gpu.backends.metal.counters import MacCounters

IOREG = b"""<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0"><array><dict>
<key>IOClass</key><string>AGXAcceleratorG15X</string>
<key>gpu-core-count</key><integer>40</integer>
<key>model</key><string>Apple M3 Max</string>
<key>PerformanceStatistics</key><dict>
<key>Device Utilization %</key><integer>23</integer>
<key>Renderer Utilization %</key><integer>21</integer>
<key>In use system memory</key><integer>1073741824</integer>
<key>Alloc system memory</key><integer>9663676416</integer>
</dict></dict></array></plist>
"""
"""Of the shape that `ioreg -a -r -d 1 -c IOAccelerator` prints; the values are made up."""


class OnTheProcessor(MetalDriver):
    """Computes with MLX's CPU device."""

    def _device(self, mlx: Any) -> Any:
        return mlx.cpu


def ioreg(command: Sequence[str]) -> bytes:
    """Print the registry."""
    assert command[0] == "ioreg"
    return IOREG


def make() -> MetalDriver:
    """Return a driver of one GPU."""
    return OnTheProcessor(counters=MacCounters(run=ioreg))


def why_not() -> str | None:
    """Say why there is none on this machine."""
    return None if importlib.util.find_spec("mlx") else "MLX is not installed"
