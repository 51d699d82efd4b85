"""Machines that crash, with disks that are slow, full or unreadable and clocks that are wrong or stand still."""

from exo_sim.disk import FAST_US
from exo_sim.machine import Machine
from exo_sim.trouble import Trouble


def _crash(trouble: Trouble, machine: Machine | None) -> bool:
    if machine is None:
        return False
    is_only_fault = trouble.active_count == 0 and not trouble.cluster.network.has_cuts
    voters = len(machine.up.voters.voters) if machine.is_running else 0
    is_failover = is_only_fault and machine.leads and machine.up.is_term_committed and voters > 2
    machine.stop("crashes")
    trouble.restart_later(machine)
    trouble.cluster.watch_failover(is_failover)
    return True


def crash_any(trouble: Trouble) -> bool:
    return _crash(trouble, trouble.any_running())


def crash_leader(trouble: Trouble) -> bool:
    return _crash(trouble, trouble.cluster.leader)


def crash_after_vote(trouble: Trouble) -> bool:
    """Voters are to crash the next time they vote, and are made to vote."""
    for machine in trouble.cluster.running:
        machine.is_to_crash_after_vote = trouble.random.random() < 0.7
    leader = trouble.cluster.leader
    if leader is not None:
        _crash(trouble, leader)
    return True


def disk_full(trouble: Trouble) -> bool:
    machine = trouble.any_running()
    if machine is None:
        return False
    machine.disk.is_full = True
    trouble.cluster.watch_failover(False)
    return True


def slow_disk(trouble: Trouble) -> bool:
    machine = trouble.any_running()
    if machine is None:
        return False
    machine.disk.sync_us = (20_000, trouble.random.randint(50_000, 600_000))
    trouble.tell(machine.node_id, "its disk is slow from here on")

    def fast() -> None:
        machine.disk.sync_us = FAST_US

    trouble.for_a_while(0.5, 5.0, fast)
    return True


def rot(trouble: Trouble) -> bool:
    """The log of one node is lost; never of so many that nobody could have what was committed."""
    cluster = trouble.cluster
    candidates = [one for one in cluster.machines if _may_rot(trouble, one)]
    if not candidates:
        return False
    machine = trouble.random.choice(candidates)
    machine.stop("crashes")
    machine.rot()
    trouble.restart_later(machine)
    return True


def _may_rot(trouble: Trouble, machine: Machine) -> bool:
    cluster = trouble.cluster
    if machine.incarnation != max(cluster.ledger.histories) or machine.disk.is_impaired:
        return False
    if not machine.disk.synced.last_index:
        return False
    leader = cluster.leader
    if leader is None or leader.incarnation != machine.incarnation or not leader.up.is_term_committed:
        return False
    voters = leader.up.voters
    if voters != cluster.ledger.newest.voters or not voters.members <= cluster.members:
        return False
    if machine.node_id in voters.replicas:
        return len(cluster.members) == 2  # Else it may be about to become one of two voters.
    gone = {one.node_id for one in cluster.machines if one.disk.is_impaired} | {machine.node_id}
    return machine.node_id in voters.voters and 2 * len(gone & set(voters.voters)) < len(voters.voters)


def stall(trouble: Trouble) -> bool:
    machine = trouble.any_running()
    if machine is None:
        return False
    machine.is_stalled = True
    trouble.tell(machine.node_id, "its clock stalls")

    def go_on() -> None:
        machine.is_stalled = False

    trouble.for_a_while(0.3, 4.0, go_on)
    return True


def freeze(trouble: Trouble) -> bool:
    machine = trouble.any_running()
    if machine is None:
        return False
    machine.freeze()
    trouble.tell(machine.node_id, "its process is frozen")
    trouble.for_a_while(0.3, 4.0, machine.thaw)
    return True


def wrong_clock(trouble: Trouble) -> bool:
    machine = trouble.any_running()
    if machine is None:
        return False
    machine.clock_rate = trouble.random.choice((0.5, 0.8, 1.25, 2.0))
    trouble.tell(machine.node_id, f"its ticks take {machine.clock_rate:g} times as long")

    def right() -> None:
        machine.clock_rate = 1.0

    trouble.for_a_while(1.0, 8.0, right)
    return True
