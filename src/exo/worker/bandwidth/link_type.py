"""What kind of link leads to another host, as far as this host's system knows: by the interface that the way takes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from exo.shared.addresses import is_loopback
from exo.shared.types.nodes import LinkType

_SYS_CLASS_NET = Path("/sys/class/net")
_INFINIBAND = "32"
"""ARPHRD_INFINIBAND of Linux's if_arp.h; 1 is Ethernet, which wifi calls itself as well."""
_ETHERNET = "1"
_LOWER_MAX = 4
"""A VLAN on a bond on a card: deeper than that nobody builds."""
_WINDOWS_NAMES: tuple[tuple[str, LinkType], ...] = (
    ("wi-fi", "wifi"),
    ("wlan", "wifi"),
    ("thunderbolt", "thunderbolt"),
    ("ethernet", "ethernet"),
)
"""What Windows calls interfaces until somebody gives them other names."""


def link_type(own_host: str, peer_host: str) -> LinkType:
    """Return the kind of link between two addresses, one of this host; `unknown` rather than a guess."""
    return link_type_of(own_host, peer_host, _addresses(), _SYS_CLASS_NET, sys.platform)


def link_type_of(
    own_host: str,
    peer_host: str,
    addresses: Mapping[str, Sequence[str]],
    sys_class_net: Path,
    platform: str,
) -> LinkType:
    """Return the kind of link.

    Args:
        own_host: The address that the way begins at.
        peer_host: The address that it leads to.
        addresses: This host's addresses by interface.
        sys_class_net: Where Linux describes interfaces.
        platform: As `sys.platform` says it.
    """
    own = {address for found in addresses.values() for address in found}
    if is_loopback(peer_host) or peer_host in own:
        return "loopback"
    interface = next((name for name, found in addresses.items() if own_host in found), None)
    if interface is None:
        return "unknown"
    if platform == "linux":
        return _of_linux(sys_class_net / interface)
    if platform == "win32":
        for name, kind in _WINDOWS_NAMES:
            if interface.lower().startswith(name):
                return kind
    return "unknown"


def _of_linux(directory: Path, depth: int = 0) -> LinkType:
    kind = _text(directory / "type")
    if (directory / "wireless").exists() or (directory / "phy80211").exists():
        return "wifi"
    device = directory / "device"
    if device.exists():
        driver = _link_name(device / "driver").replace("_", "-")
        if driver == "thunderbolt-net":
            return "thunderbolt"
        if kind == _INFINIBAND or (device / "infiniband").exists():
            return "rdma"
        return "ethernet" if kind == _ETHERNET else "unknown"
    # A bridge, a bond or a VLAN is what it stands on; a tunnel stands on nothing that could be seen.
    if depth >= _LOWER_MAX:
        return "unknown"
    try:
        lower = sorted(one for one in directory.iterdir() if one.name.startswith("lower_"))
    except OSError:
        return "unknown"
    kinds: set[LinkType] = {_of_linux(one, depth + 1) for one in lower}
    return kinds.pop() if len(kinds) == 1 else "unknown"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _link_name(link: Path) -> str:
    try:
        return link.resolve(strict=True).name
    except OSError:
        return ""


def _addresses() -> dict[str, list[str]]:
    """Return this host's addresses; those of IPv6 without the name of the interface behind them."""
    return {
        name: [one.address.partition("%")[0] for one in found]
        for name, found in psutil.net_if_addrs().items()
    }
