"""Term and vote as a file."""

import msgspec

from exo.cluster.log.base import VoteStore
from exo.cluster.log.files import Files
from exo.cluster.log.slots import TwoSlots
from exo.cluster.raft.steps import HardState
from exo.shared.errors import LogCorruptError

VOTE_NAME = "vote"
_VERSION = 1


class FileVoteStore(VoteStore):
    """Keeps term and vote in two slots, each of which is written for every change.

    One slot is enough to know them. As both hold the same once `save` has returned, one that goes bad later is not
    mistaken for a write that the power interrupted, and no vote is forgotten.

    Args:
        files: The directory.
        where: Its name, for people.

    Raises:
        LogCorruptError: The vote cannot be read, or a newer release wrote it.
        OSError: The file cannot be read or written.
    """

    def __init__(self, files: Files, where: str) -> None:
        damage = (
            f"the vote in {where} is damaged: its file {VOTE_NAME} cannot be read, and without it this node might vote "
            "twice; restore the directory from a copy, or choose another one with EXO_HOME"
        )
        self._slots = TwoSlots(files, VOTE_NAME, kind=b"VOTE", version=_VERSION, where=where, damage=damage)
        self._is_known = True
        """False: writing failed, and nobody knows what the disk has."""
        try:
            payload = self._slots.payload
            self._hard_state = (
                HardState() if payload is None else msgspec.msgpack.decode(payload, type=HardState)
            )
            if payload is not None and not self._slots.is_doubled:
                self._slots.write(payload)
        except msgspec.DecodeError as error:
            self.close()
            raise LogCorruptError(damage) from error
        except OSError:
            self.close()
            raise

    def load(self) -> HardState:
        return self._hard_state

    def save(self, hard_state: HardState) -> None:
        if hard_state == self._hard_state and self._is_known:
            return
        self._is_known = False
        payload = msgspec.msgpack.encode(hard_state)
        self._slots.write(payload)
        self._slots.write(payload)
        self._hard_state, self._is_known = hard_state, True

    def close(self) -> None:
        self._slots.close()
