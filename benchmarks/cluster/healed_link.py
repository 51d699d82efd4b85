"""A node's cable is pulled for a while and put back: until it has everything that was decided meanwhile."""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.cluster.assembly import Place
from benchmarks.cluster.measuring import Sheet
from benchmarks.cluster.namespaces import Network, network
from benchmarks.cluster.processes import CoordinatorProcess, Nodes, master_of, running, wait_whole
from benchmarks.results import Result
from exo.shared.types.nodes import HostPort

PORT = 7700
EVENTS = 500


def run(*, quick: bool) -> list[Result]:
    """Three nodes in network namespaces; one that does not lead is cut off."""
    sheet = Sheet()
    times_s: list[float] = []
    with tempfile.TemporaryDirectory(prefix="exo-benchmark-") as folder, network(3) as cables:
        nodes = _nodes(Path(folder), cables)
        with running(nodes):
            for cut_s in (6.0,) if quick else (3.0, 6.0, 12.0, 6.0, 12.0):
                master, others = master_of(nodes)
                times_s.append(_healed_s(cables, nodes, master, others[0], cut_s))
                wait_whole(nodes)
    sheet.add("healed link to caught up, median", statistics.median(times_s), "s")
    sheet.add("healed link to caught up, worst", max(times_s), "s", at_most=2)
    return sheet.results


def _healed_s(
    cables: Network, nodes: Nodes, master: CoordinatorProcess, victim: CoordinatorProcess, cut_s: float
) -> float:
    number = nodes.index(victim)
    cables.cut(number)
    time.sleep(cut_s)
    master.ask("flood", "flooded", events=EVENTS, batch=1, in_flight=8)
    report = master.report()
    victim.tell("wait_index", index=report["index"], cluster_id=report["cluster_id"])
    healed_s = time.monotonic()
    cables.heal(number)
    return victim.answer("reached", timeout_s=60)["at_s"] - healed_s


def _nodes(folder: Path, cables: Network) -> Nodes:
    addresses = [HostPort(address, PORT) for address in cables.addresses]
    return [
        CoordinatorProcess(
            Place(
                home=folder / f"node-{number}",
                listen=address,
                peers=tuple(other for other in addresses if other != address),
            ),
            cables.prefix(number),
        )
        for number, address in enumerate(addresses)
    ]
