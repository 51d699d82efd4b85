"""A tree of files such as Linux' graphics drivers write, for drivers that read cards there."""

import shutil
import struct
from collections.abc import Mapping
from pathlib import Path

GIB = 2**30


class FakeSysfs:
    """Writes and changes the files under a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "class" / "drm").mkdir(parents=True)

    def write(self, files: Mapping[str, object]) -> None:
        """Write files by their path under the folder; None takes one away."""
        for name, content in files.items():
            file = self.folder / name
            if content is None:
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                file.write_bytes(content)
            else:
                file.write_text(f"{content}\n", encoding="utf-8")

    def card(
        self, number: int, address: str, driver: str, identity: str, files: Mapping[str, object]
    ) -> None:
        """Add a card: `class/drm/cardN`, and the PCI device that it links to."""
        device = self.folder / "devices" / address
        device.mkdir(parents=True)
        drm = self.folder / "class" / "drm" / f"card{number}"
        drm.mkdir()
        (drm / "device").symlink_to(device)
        (self.folder / "class" / "drm" / f"card{number}-DP-1").mkdir(exist_ok=True)
        said = f"DRIVER={driver}\nPCI_CLASS=30000\nPCI_ID={identity}\nPCI_SLOT_NAME={address}\n"
        self.write({f"devices/{address}/uevent": said})
        self.change(address, files)

    def change(self, address: str, files: Mapping[str, object]) -> None:
        """Write files of a card's device."""
        self.write({f"devices/{address}/{name}": content for name, content in files.items()})

    def remove(self, number: int, address: str) -> None:
        """Take a card away."""
        shutil.rmtree(self.folder / "devices" / address)
        shutil.rmtree(self.folder / "class" / "drm" / f"card{number}")


def radeon(**more: object) -> dict[str, object]:
    """Return the files of a Radeon RX 7900 XTX."""
    files: dict[str, object] = {
        "mem_info_vram_total": 24 * GIB,
        "mem_info_vram_used": 3 * GIB,
        "mem_info_gtt_total": 16 * GIB,
        "mem_info_gtt_used": GIB,
        "gpu_busy_percent": 42,
        "unique_id": "5a1c9d00f1e2d3c4",
        "product_name": "",
        "pp_dpm_sclk": "0: 500Mhz\n1: 1850Mhz *\n2: 2482Mhz",
        "gpu_metrics": gpu_metrics(0),
        "power/runtime_status": "active",
        "hwmon/hwmon4/temp1_input": 58_000,
        "hwmon/hwmon4/temp1_label": "edge",
        "hwmon/hwmon4/temp1_crit": 100_000,
        "hwmon/hwmon4/temp2_input": 71_000,
        "hwmon/hwmon4/temp2_label": "junction",
        "hwmon/hwmon4/temp2_crit": 110_000,
        "hwmon/hwmon4/power1_average": 213_000_000,
        "hwmon/hwmon4/power1_cap": 339_000_000,
        "hwmon/hwmon4/power1_label": "PPT",
        "hwmon/hwmon4/freq1_input": 1_903_000_000,
        "hwmon/hwmon4/freq1_label": "sclk",
    }
    return {**files, **{name.replace("__", "/"): content for name, content in more.items()}}


def kfd_node(number: int, gpu_id: int, address: str, **more: int) -> dict[str, object]:
    """Return the files of a node of AMD's compute driver."""
    domain, bus, rest = address.split(":")
    device, function = rest.split(".")
    values = {
        "cpu_cores_count": 0,
        "simd_count": 192,
        "simd_per_cu": 2,
        "gfx_target_version": 110_000,
        "domain": int(domain, 16),
        "location_id": int(bus, 16) << 8 | int(device, 16) << 3 | int(function),
        **more,
    }
    folder = f"class/kfd/kfd/topology/nodes/{number}"
    properties = "\n".join(f"{name} {value}" for name, value in values.items())
    return {f"{folder}/gpu_id": gpu_id, f"{folder}/properties": properties}


def gpu_metrics(status: int, version: tuple[int, int] = (1, 3)) -> bytes:
    """Return amdgpu's table of metrics with the bits of what holds the clocks back."""
    head = struct.pack("<HBB", 120, *version)
    return head + bytes(108) + struct.pack("<Q", status)
