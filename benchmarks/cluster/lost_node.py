"""A node is gone, with and without a word of its operating system: until the master has decided so."""

import signal
import statistics
import time

from benchmarks.cluster.measuring import Sheet
from benchmarks.cluster.processes import CoordinatorProcess, cluster, master_of, wait_whole
from benchmarks.results import Result


def run(*, quick: bool) -> list[Result]:
    """Three nodes; a follower is killed, or stopped so that it only falls silent."""
    sheet = Sheet()
    killed_s: list[float] = []
    stopped_s: list[float] = []
    with cluster(3) as nodes:
        for number in range(2 if quick else 10):
            master, others = master_of(nodes)
            victim = others[number % 2]
            master.tell("watch")

            lost_s = time.monotonic()
            victim.kill()
            killed_s.append(_noticed_s(master, victim, lost_s) - lost_s)
            victim.start()
            wait_whole(nodes)

            lost_s = time.monotonic()
            victim.signal(signal.SIGSTOP)
            stopped_s.append(_noticed_s(master, victim, lost_s) - lost_s)
            victim.signal(signal.SIGCONT)
            wait_whole(nodes)
    sheet.add("lost node noticed, killed, median", statistics.median(killed_s), "s")
    sheet.add("lost node noticed, killed, worst", max(killed_s), "s", at_most=2)
    sheet.add("lost node noticed, silent, median", statistics.median(stopped_s), "s")
    sheet.add("lost node noticed, silent, worst", max(stopped_s), "s", at_most=2)
    return sheet.results


def _noticed_s(master: CoordinatorProcess, victim: CoordinatorProcess, lost_s: float) -> float:
    while True:
        seen = master.answer("seen")
        if seen["at_s"] >= lost_s and victim.node_id not in seen["connected"]:
            return seen["at_s"]
