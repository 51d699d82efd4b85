"""How many events a second three nodes agree on: proposed, durable where they have to be, and folded in on all."""

from benchmarks.cluster.measuring import Sheet
from benchmarks.cluster.processes import Nodes, cluster, master_of
from benchmarks.results import Result

BATCH = 64
IN_FLIGHT = 16


def run(*, quick: bool) -> list[Result]:
    """Proposed at the master, then on a follower, in batches."""
    sheet = Sheet()
    events = 20_000 if quick else 200_000
    with cluster(3) as nodes:
        flood(nodes, 0, 2_000)
        master, others = master_of(nodes)
        at_master = flood(nodes, nodes.index(master), events)
        at_follower = flood(nodes, nodes.index(others[0]), events)
    sheet.add("committed on three nodes, proposed by the master", at_master, "events/s", at_least=20_000)
    sheet.add("committed on three nodes, proposed by another", at_follower, "events/s")
    return sheet.results


def flood(nodes: Nodes, proposer: int, events: int) -> float:
    """Have so many events committed; return how many a second until the last node had the last one."""
    node = nodes[proposer]
    flooded = node.ask("flood", "flooded", timeout_s=300, events=events, batch=BATCH, in_flight=IN_FLIGHT)
    report = node.report()
    for each in nodes:
        each.tell("wait_index", index=report["index"], cluster_id=report["cluster_id"])
    at_s = max(each.answer("reached", timeout_s=60)["at_s"] for each in nodes if each is not node)
    node.answer("reached")
    return events / (max(at_s, flooded["at_s"]) - flooded["started_s"])
