"""What people do to a cluster: other members, another leader, a history begun anew."""

from exo_sim.trouble import Trouble


def change_members(trouble: Trouble) -> bool:
    others = [members for members in trouble.memberships if members != trouble.cluster.members]
    # People do not take nodes away while one has to be healed: too few might be left who know everything.
    if not others or any(machine.disk.is_impaired for machine in trouble.cluster.machines):
        return False
    trouble.cluster.members = trouble.random.choice(others)
    for machine in trouble.cluster.machines:
        if machine.node_id in trouble.cluster.members and not machine.is_running and machine.boot == 0:
            machine.start()
    trouble.tell("", f"the members are to be {' '.join(sorted(trouble.cluster.members))}")
    trouble.cluster.watch_failover(False)
    return True


def hand_over(trouble: Trouble) -> bool:
    leader = trouble.cluster.leader
    if leader is None or leader.is_frozen:
        return False
    others = [one for one in leader.up.voters.voters if one != leader.node_id]
    to = trouble.random.choice([None, *others])
    trouble.tell(leader.node_id, f"is to hand over to {to or 'anybody'}")
    leader.hand_over(to)
    trouble.cluster.watch_failover(False)
    return bool(others)


def force(trouble: Trouble) -> bool:
    """An operator loses patience: everybody else is down or cut off, and this node is to go on alone."""
    cluster, random = trouble.cluster, trouble.random
    newest = max(cluster.ledger.histories)
    candidates = [
        one
        for one in cluster.running
        if one.incarnation == newest
        and not one.leads
        and not one.is_frozen
        and one.up.has_vote
        and one.node_id in cluster.members & one.up.voters.members
        and len(one.up.voters.members) > 1
        and one.disk.incarnation == newest
    ]
    if not candidates:
        return False
    survivor = random.choice(candidates)
    others = [one for one in cluster.machines if one is not survivor]
    if random.random() < 0.7:
        for one in others:
            if one.is_running:
                one.stop("crashes")
                trouble.restart_later(one, 1.0, 6.0)
    else:
        cluster.cut([survivor.node_id], [one.node_id for one in others])
        trouble.cut_number += 1
        mine = trouble.cut_number

        def heal() -> None:
            if trouble.cut_number == mine:
                cluster.network.heal()

        trouble.for_a_while(1.0, 6.0, heal)
    forgotten = tuple(sorted(survivor.up.voters.members - {survivor.node_id}))
    trouble.tell(survivor.node_id, f"is told to go on without {' '.join(forgotten)}")
    survivor.force(forgotten)
    cluster.watch_failover(False)
    return True
