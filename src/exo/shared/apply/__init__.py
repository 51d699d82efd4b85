"""State x event -> state. Pure: no clock, no randomness, no environment; what is needed is in the event."""

from collections.abc import Callable
from typing import Any

import msgspec

from exo.shared.apply import devices, instances, nodes, telemetry
from exo.shared.errors import LogOrderError
from exo.shared.types import events as e
from exo.shared.types.state import State

_DECISIONS: dict[type, Callable[[State, Any], State]] = {
    e.ClusterFormed: nodes.cluster_formed,
    e.ClusterDissolved: nodes.cluster_dissolved,
    e.VotersChanged: nodes.voters_changed,
    e.HistoryForced: nodes.history_forced,
    e.TermOpened: nodes.term_opened,
    e.NodeJoined: nodes.node_joined,
    e.NodeDisconnected: nodes.node_disconnected,
    e.NodeRemoved: nodes.node_removed,
    e.NodeModelsChanged: nodes.node_models_changed,
    e.DeviceAppeared: devices.device_appeared,
    e.DeviceLost: devices.device_lost,
    e.InstanceCreated: instances.instance_created,
    e.InstanceDeleted: instances.instance_deleted,
    e.InstanceRestarted: instances.instance_restarted,
    e.StageChanged: instances.stage_changed,
}


def apply_entry(state: State, entry: e.LogEntry) -> State:
    """Fold one decision in.

    Raises:
        LogOrderError: The entry is not the one that follows the state's index.
    """
    if entry.index != state.index + 1:
        raise LogOrderError(expected_index=state.index + 1, got_index=entry.index)
    changed = _DECISIONS[type(entry.event)](state, entry.event)
    return msgspec.structs.replace(
        changed,
        index=entry.index,
        term=entry.term,
        last_seq={**changed.last_seq, entry.origin: entry.seq},
    )


def apply_telemetry(state: State, frame: e.TelemetryFrame) -> State:
    """Fold one node's latest telemetry in; an older frame, or one of an unknown node, changes nothing."""
    return telemetry.frame_received(state, frame)
