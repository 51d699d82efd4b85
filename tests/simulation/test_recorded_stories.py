"""The stories behind `tests/histories` can be told again: what a real coordinator decided folds to its state."""

import pytest

from exo.shared.apply import apply_entries
from exo.shared.types.events import (
    ClusterDissolved,
    HistoryForced,
    InstanceMoved,
    InstanceRestarted,
    InstanceStranded,
    InstanceWaits,
    VotersChanged,
)
from exo.shared.types.state import State
from support.recorded_story import Recording, record


def check(recording: Recording) -> None:
    assert [entry.index for entry in recording.entries] == list(range(1, len(recording.entries) + 1))
    assert apply_entries(State(), recording.entries) == recording.state


@pytest.mark.parametrize("seed", range(3))
def test_voters_come_and_go_and_an_operator_goes_on_without_them(seed: int) -> None:
    recording = record("forced-history", seed)
    check(recording)
    events = [entry.event for entry in recording.entries]
    (forced,) = [event for event in events if isinstance(event, HistoryForced)]
    assert (forced.incarnation, len(forced.forgotten)) == (2, 2)
    assert sum(isinstance(event, VotersChanged) for event in events) >= 6
    assert recording.state.incarnation == 2


@pytest.mark.parametrize("seed", range(3))
def test_an_instance_moves_off_devices_that_are_gone(seed: int) -> None:
    recording = record("moved-instance", seed)
    check(recording)
    kinds = [type(entry.event) for entry in recording.entries]
    (moved, stranded, restarted) = (
        kinds.index(kind) for kind in (InstanceMoved, InstanceStranded, InstanceRestarted)
    )
    assert moved < stranded < restarted
    (instance,) = recording.state.instances.values()
    assert (instance.status, instance.generation) == ("ready", 3)


@pytest.mark.parametrize("seed", range(3))
def test_an_instance_waits_for_a_lost_node_and_the_next_time_goes_on_elsewhere(seed: int) -> None:
    recording = record("lost-node", seed)
    check(recording)
    kinds = [type(entry.event) for entry in recording.entries]
    assert kinds.index(InstanceWaits) < kinds.index(InstanceMoved)
    (instance,) = recording.state.instances.values()
    assert (instance.status, instance.generation, instance.waiting_reason) == ("ready", 2, None)


@pytest.mark.parametrize("seed", range(3))
def test_a_cluster_ends_with_its_last_decision(seed: int) -> None:
    recording = record("dissolved-cluster", seed)
    check(recording)
    assert isinstance(recording.entries[-1].event, ClusterDissolved)
    assert recording.state.dissolved_into == recording.entries[-1].event.into_cluster_id
