"""State x events -> state. Pure: no clock, no randomness, no environment; what is needed is in the events.

A batch costs one copy of each dictionary that it changes, however many events it has: copying one of 1,000 nodes for
each event would be most of the work.
"""

from collections.abc import Callable, Sequence
from typing import Any

from exo.shared.apply import access, devices, instances, nodes, telemetry
from exo.shared.apply.draft import Draft
from exo.shared.errors import LogOrderError
from exo.shared.types import events as e
from exo.shared.types.state import State


def _about_access(draft: Draft, event: Any) -> None:
    draft.access = access.fold(draft.access, event)


def _node_removed(draft: Draft, event: e.NodeRemoved) -> None:
    nodes.node_removed(draft, event)
    _about_access(draft, event)


_DECISIONS: dict[type, Callable[[Draft, Any], None]] = {
    **dict.fromkeys(access.CHANGES, _about_access),
    e.ClusterFormed: nodes.cluster_formed,
    e.ClusterDissolved: nodes.cluster_dissolved,
    e.VotersChanged: nodes.voters_changed,
    e.HistoryForced: nodes.history_forced,
    e.TermOpened: nodes.term_opened,
    e.NodeJoined: nodes.node_joined,
    e.NodeDisconnected: nodes.node_disconnected,
    e.NodeRemoved: _node_removed,
    e.NodeModelsChanged: nodes.node_models_changed,
    e.DeviceAppeared: devices.device_appeared,
    e.DeviceLost: devices.device_lost,
    e.InstanceCreated: instances.instance_created,
    e.InstanceDeleted: instances.instance_deleted,
    e.InstanceRestarted: instances.instance_restarted,
    e.InstanceMoved: instances.instance_moved,
    e.InstanceStranded: instances.instance_stranded,
    e.InstanceWaits: instances.instance_waits,
    e.StageChanged: instances.stage_changed,
}


def apply_entries(state: State, entries: Sequence[e.LogEntry]) -> State:
    """Fold decisions in, in their order; without any, return the state itself.

    Raises:
        LogOrderError: An entry is not the one that follows the one before it, or the state's index.
    """
    if not entries:
        return state
    draft = Draft(state)
    for entry in entries:
        if entry.index != draft.index + 1:
            raise LogOrderError(expected_index=draft.index + 1, got_index=entry.index)
        _DECISIONS[type(entry.event)](draft, entry.event)
        draft.index = entry.index
        draft.term = entry.term
        draft.put_last_seq(entry.origin, entry.seq)
    return draft.finish()


def apply_entry(state: State, entry: e.LogEntry) -> State:
    """Fold one decision in; `apply_entries` costs less where there are several.

    Raises:
        LogOrderError: The entry is not the one that follows the state's index.
    """
    return apply_entries(state, (entry,))


def apply_frames(
    state: State, frames: Sequence[e.TelemetryFrame]
) -> tuple[State, Sequence[e.TelemetryFrame]]:
    """Fold telemetry in, in its order, and return with the new state those of the frames that were news.

    A frame that is older than what is known of its node, or is of a node or a boot that is no member, changes
    nothing; without any news the state itself is returned.
    """
    return telemetry.frames_received(state, frames)


def apply_telemetry(state: State, frame: e.TelemetryFrame) -> State:
    """Fold one node's latest telemetry in; an older frame, or one of an unknown node, changes nothing."""
    return telemetry.frames_received(state, (frame,))[0]
