"""Which ways of finding nodes follow from which settings."""

from pathlib import Path
from typing import Any

import pytest

from exo.cluster.discovery.factory import make_discoveries
from exo.shared.errors import ConfigurationError
from exo.shared.types.nodes import HostPort


def kinds(**changes: Any) -> list[str]:
    options: dict[str, Any] = {
        "is_multicast_enabled": False,
        "is_mdns_enabled": False,
        "is_tailscale_enabled": False,
        "peers": (),
        "peers_file": None,
        "keys": lambda: [b"k" * 32],
        "discovery_port": 52416,
        "cluster_port": 52416,
    }
    return [type(one).__name__ for one in make_discoveries(**options | changes)]


def test_each_way_is_taken_when_it_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    path.write_text('["attic"]')
    assert kinds() == []
    assert kinds(is_multicast_enabled=True) == ["MulticastDiscovery"]
    assert kinds(is_mdns_enabled=True) == ["MdnsDiscovery"]
    assert kinds(is_tailscale_enabled=True) == ["TailscaleDiscovery"]
    assert kinds(peers=[HostPort("attic", 7)]) == ["StaticDiscovery"]
    assert kinds(peers_file=path) == ["PeersFileDiscovery"]


def test_a_peers_file_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        kinds(peers_file=tmp_path / "missing.json")
