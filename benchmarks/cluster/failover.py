"""From `kill -9` of the master to the moment when both other nodes have had a decision committed again."""

import random
import statistics
import time

from benchmarks.cluster.measuring import Sheet, percentile
from benchmarks.cluster.processes import cluster, master_of, wait_whole
from benchmarks.results import Result


def run(*, quick: bool) -> list[Result]:
    """Three processes; the killed one comes back before the next round."""
    sheet = Sheet()
    chance = random.Random(1)
    times_s: list[float] = []
    with cluster(3) as nodes:
        for _ in range(5 if quick else 40):
            time.sleep(chance.random() * 0.5)  # Anywhere between two heartbeats.
            master, others = master_of(nodes)
            killed_s = time.monotonic()
            master.kill()
            for node in others:
                node.tell("commit")
            times_s.append(max(node.answer("committed")["at_s"] for node in others) - killed_s)
            master.start()
            wait_whole(nodes)
    sheet.add("failover after kill -9, p50", statistics.median(times_s), "s", at_most=1)
    sheet.add("failover after kill -9, p99", percentile(times_s, 99), "s", at_most=2)
    return sheet.results
