"""Messages that get lost, late, doubled or out of order, and links that are cut."""

import msgspec

from exo_sim.network import CALM
from exo_sim.trouble import Trouble


def storm(trouble: Trouble, kind: str, **weather: object) -> bool:
    network = trouble.cluster.network
    network.weather = msgspec.structs.replace(network.weather, **weather)
    trouble.tell("", f"the network: {kind} from here on")

    def calm() -> None:
        network.weather = msgspec.structs.replace(
            network.weather, **{name: getattr(CALM, name) for name in weather}
        )
        trouble.tell("", f"the network: no more {kind}")

    trouble.for_a_while(0.5, 5.0, calm)
    return True


def partition(trouble: Trouble, *, is_one_way: bool) -> bool:
    machines = list(trouble.cluster.machines)
    if len(machines) < 2:
        return False
    leader = trouble.cluster.leader
    if leader is not None and trouble.random.random() < 0.5:
        here = [leader.node_id]
    else:
        here = [
            one.node_id
            for one in trouble.random.sample(machines, trouble.random.randint(1, len(machines) - 1))
        ]
    there = [one.node_id for one in machines if one.node_id not in here]
    if is_one_way and trouble.random.random() < 0.5:
        here, there = there, here
    trouble.cluster.cut(here, there, is_one_way=is_one_way)
    trouble.cut_number += 1
    mine = trouble.cut_number
    trouble.tell(
        "", f"{' '.join(here)} {'cannot send to' if is_one_way else 'cut off from'} {' '.join(there)}"
    )

    def heal() -> None:
        if trouble.cut_number == mine:
            trouble.cluster.network.heal()
            trouble.tell("", "all links are whole again")

    trouble.for_a_while(0.5, 6.0, heal)
    return True
