"""Which ways of finding nodes a node takes, from its settings."""

from collections.abc import Callable, Sequence
from pathlib import Path

from exo.cluster.discovery.base import Discovery
from exo.cluster.discovery.peers_file import PeersFileDiscovery, read_peers
from exo.cluster.discovery.static import StaticDiscovery
from exo.shared.types.nodes import HostPort


def make_discoveries(
    *,
    is_multicast_enabled: bool,
    is_mdns_enabled: bool,
    is_tailscale_enabled: bool,
    peers: Sequence[HostPort],
    peers_file: Path | None,
    keys: Callable[[], Sequence[bytes]],
    discovery_port: int,
    cluster_port: int,
) -> list[Discovery]:
    """Return the ways that are wanted; nothing is opened before they run.

    Args:
        peers: Addresses that were named at start.
        peers_file: A file that names more.
        keys: Returns the keys of beacons that this node has now, those of its cluster and its host secret.
        discovery_port: UDP port of the multicast.
        cluster_port: Where other nodes listen unless they say otherwise: in the peers file, and by Tailscale.

    Raises:
        ConfigurationError: The peers file cannot be used now. Later on it is only told.
    """
    found: list[Discovery] = []
    if is_multicast_enabled:
        from exo.cluster.discovery.multicast import MulticastDiscovery

        found.append(MulticastDiscovery(keys, port=discovery_port))
    if is_mdns_enabled:
        from exo.cluster.discovery.mdns import MdnsDiscovery

        found.append(MdnsDiscovery())
    if peers:
        found.append(StaticDiscovery(peers))
    if peers_file is not None:
        read_peers(peers_file, default_port=cluster_port)
        found.append(PeersFileDiscovery(peers_file, default_port=cluster_port))
    if is_tailscale_enabled:
        from exo.cluster.discovery.tailscale import TailscaleDiscovery

        found.append(TailscaleDiscovery(cluster_port=cluster_port))
    return found
