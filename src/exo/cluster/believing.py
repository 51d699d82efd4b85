"""What of a follower's words a master believes: facts of itself, and what its own connection proves. Pure."""

from collections.abc import Sequence

import msgspec

from exo.cluster.wire import ProposedEvent
from exo.shared.types.commands import Command, EnrolNode
from exo.shared.types.events import (
    Decision,
    DeviceAppeared,
    DeviceLost,
    NodeJoined,
    NodeModelsChanged,
    StageChanged,
)
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.state import State

FACTS = (NodeJoined, NodeModelsChanged, DeviceAppeared, DeviceLost, StageChanged)
"""What a node says of itself: true whoever leads, so it is offered to one master after the other until it is committed.
Everything else a master decides on the state that it sees. Proposed in one term, it is void in any other: a master that
was replaced meanwhile must not have its decision committed on a state that it never saw."""


def are_facts(events: Sequence[Decision]) -> bool:
    """Say whether any node may propose these, of itself."""
    return all(isinstance(event, FACTS) for event in events)


def proposal_fault(state: State, origin: NodeId, events: Sequence[ProposedEvent]) -> str | None:
    """Return why a follower may not propose these events, or None when it may."""
    for event in (proposed.event for proposed in events):
        if not isinstance(event, FACTS):
            return f"a {type(event).__name__} is for the master to decide, and {origin} proposed one"
        if not _is_own(state, origin, event):
            return f"{origin} proposed a {type(event).__name__} that is not its own"
    return None


def _is_own(state: State, origin: NodeId, event: Decision) -> bool:
    match event:
        case NodeJoined(identity=identity):
            return identity.node_id == origin and all(
                _is_device_of(origin, device.device_id) for device in identity.devices
            )
        case DeviceAppeared(node_id=node_id, device=device):
            return node_id == origin and _is_device_of(origin, device.device_id)
        case NodeModelsChanged() | DeviceLost():
            return event.node_id == origin
        case StageChanged(rank=rank):
            instance = state.instances.get(event.instance_id)
            if instance is None or instance.generation != event.generation:
                return rank >= 0  # It is over, or not known here yet: it will be passed over.
            stages = instance.plan.stages
            return 0 <= rank < len(stages) and stages[rank].node_id == origin
        case _:
            return False


def _is_device_of(node_id: NodeId, device_id: DeviceId) -> bool:
    return device_id.startswith(f"{node_id}/")


def believed(command: Command, origin: NodeId, *, is_certified: bool) -> Command:
    """Return a follower's command without the claims that are not its to make.

    Args:
        command: As it came.
        origin: The follower.
        is_certified: Its connection is protected by its certificate; else by the secret of this host.
    """
    if not isinstance(command, EnrolNode) or command.proof not in ("certificate", "host_secret"):
        return command
    # What speaks for a node is this very connection: its own, by its certificate or by the secret of this host.
    is_own = command.node_id == origin
    is_proven = command.is_proven and is_own and (command.proof == "certificate") == is_certified
    return msgspec.structs.replace(command, is_proven=is_proven)
