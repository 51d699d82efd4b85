"""A process that does nothing but find others: tells on stdout whom, one JSON object a line.

    python discovery_process.py NODE_ID WAY CLUSTER_ADDRESS

WAY is `multicast` or `mdns`. Log lines come as {"log": ...}.
"""

import asyncio
import json
import sys

from loguru import logger

from exo.cluster.discovery.base import Discovery
from exo.cluster.discovery.mdns import MdnsDiscovery
from exo.cluster.discovery.multicast import MulticastDiscovery
from exo.cluster.facts import PeerSeen, Sighting
from exo.shared.types.nodes import HostPort
from support.discoveries import facts

REREAD_S = 0.3


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def main(node_id: str, way: str, address: str) -> None:
    logger.remove()
    logger.add(lambda message: tell(log=str(message).strip()), level="INFO", format="{message}")
    where = HostPort.parse(address)
    own = facts(node_id, cluster_address=where, master_address=where)
    discovery: Discovery = (
        MulticastDiscovery(lambda: [b"k" * 32], port=52416, interval_s=0.2, reread_s=REREAD_S)
        if way == "multicast"
        else MdnsDiscovery(repeat_s=0.5, reread_s=REREAD_S, retry_s=REREAD_S)
    )

    def report(item: Sighting | PeerSeen) -> None:
        seen_id = (item.facts.node_id if item.facts else None) if isinstance(item, Sighting) else item.node_id
        if seen_id != node_id:
            tell(node_id=seen_id, address=str(item.address), kind=type(item).__name__)

    tell(started=node_id)
    await discovery.run(lambda: own, report)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
