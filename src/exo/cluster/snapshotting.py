"""A state as a snapshot, and back."""

import msgspec

from exo.cluster.raft.messages import Snapshot
from exo.cluster.wire import decode_snapshot, encode_state
from exo.shared.errors import LogCorruptError
from exo.shared.types.state import State
from exo.shared.types.voters import Voters


def snapshot_of(state: State, voters: Voters) -> Snapshot:
    """Return what was decided as of this state.

    Args:
        state: All of it; telemetry is left out.
        voters: Who has to agree, where the state knows of none.
    """
    decided = state.decided()
    return Snapshot(
        index=decided.index,
        term=decided.term,
        incarnation=decided.incarnation,
        voters=decided.voters if decided.voters.voters else voters,
        last_seq=decided.last_seq,
        data=encode_state(decided),
    )


def decode_state(snapshot: Snapshot) -> State:
    """Return the state in a snapshot.

    Raises:
        LogCorruptError: It is of a newer release.
    """
    try:
        return decode_snapshot(snapshot.data)
    except msgspec.DecodeError as error:
        raise LogCorruptError(
            f"the snapshot at entry {snapshot.index} was written by a newer release of exo ({error}); start that "
            "release, or choose another data directory with EXO_HOME"
        ) from error
