"""A node with an empty disk joins a cluster that has decided 100,000 things: from its start to having all of them."""

import statistics

from benchmarks.cluster.measuring import Sheet
from benchmarks.cluster.processes import cluster, newcomer
from benchmarks.cluster.throughput import flood
from benchmarks.results import Result

EVENTS = 100_000


def run(*, quick: bool) -> list[Result]:
    """Several newcomers, one after the other; Python's own start does not count."""
    sheet = Sheet()
    times_s: list[float] = []
    with cluster(3) as nodes:
        flood(nodes, 0, EVENTS)
        report = nodes[0].report()
        for number in range(2 if quick else 7):
            node = newcomer(nodes, f"newcomer-{number}")
            try:
                node.start()
                reached = node.ask(
                    "wait_index", "reached", index=report["index"], cluster_id=report["cluster_id"]
                )
                times_s.append(reached["at_s"] - node.started_s)
            finally:
                node.stop()
    sheet.add("newcomer, 100,000 events, median", statistics.median(times_s), "s")
    sheet.add("newcomer, 100,000 events, worst", max(times_s), "s", at_most=2)
    return sheet.results
