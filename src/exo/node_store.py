"""What a node finds in its data directory at start: its log, or that it was lost, and who else was there."""

from pathlib import Path

import anyio.to_thread
import msgspec
from loguru import logger

from exo.cluster.boots import count_boot
from exo.cluster.coordinator import Coordinator
from exo.cluster.last_seen import LastSeen, read_last_seen, write_last_seen
from exo.cluster.log.files import DiskFiles, sync_descriptor, sync_directory
from exo.cluster.log.store import NodeStore, open_store, set_aside
from exo.cluster.log.votes import FileVoteStore
from exo.shared.errors import ConfigurationError, LogCorruptError, LogNewerError
from exo.shared.types.ids import NodeId

VOTELESS_FILE = "voteless"
"""There while this node may not vote: it has lost its log, and with it what it voted and acknowledged."""


class Opened(msgspec.Struct, frozen=True):
    """A node's store, and what is known beside it."""

    store: NodeStore
    is_voteless: bool
    last_seen: LastSeen
    boot: int
    """Which start of the node this is, the first being 1."""


def open_node_store(home: Path, node_id: NodeId) -> Opened:
    """Open what the node keeps. A damaged log is set aside where other nodes have what was in it.

    Raises:
        ConfigurationError: The directory cannot be used, or another process uses it.
        LogNewerError: A newer release wrote the log; it stays as it is.
        LogCorruptError: The log is damaged, and no other node is known that has a copy.
    """
    folder = home / "log"
    last_seen = read_last_seen(home)
    try:
        try:
            store = open_store(folder)
        except LogNewerError:
            # Nothing is wrong with it, and a cluster that is put back a release must not lose the log on every node.
            raise
        except LogCorruptError as error:
            if not last_seen.others(node_id):
                raise
            _note_voteless(home)
            aside = set_aside(folder)
            logger.error("{}", error.message)
            logger.warning(
                "the damaged log is in {} now; this node joins its cluster again and gets a copy from {}",
                aside,
                ", ".join(map(str, last_seen.others(node_id).values())),
            )
            store = open_store(folder)
        is_voteless = (home / VOTELESS_FILE).exists()
        if is_voteless:
            _recall_term(home, store)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use the log in {folder}: {error.strerror or error}; "
            "give this user the right to write there, or choose another data directory with EXO_HOME"
        ) from error
    try:
        boot = count_boot(home)
    except BaseException:
        store.close()
        raise
    return Opened(store, is_voteless, last_seen, boot)


def _recall_term(home: Path, store: NodeStore) -> None:
    """Take the newest term that logs set aside can still tell of.

    A node that has forgotten its term would acknowledge to a leader of an earlier one, and those acknowledgements count
    as long as it is a voter.

    Raises:
        OSError: It cannot be written.
    """
    known = store.votes.load()
    for folder in home.glob("log.damaged-*"):
        try:
            votes = FileVoteStore(DiskFiles(folder), str(folder))
        except (LogCorruptError, OSError):
            continue  # Then nobody knows.
        found = votes.load()
        votes.close()
        known = max(known, found, key=lambda one: one.term)
    store.votes.save(known)


def _note_voteless(home: Path) -> None:
    """Note that this node may not vote, durably: a loss of power later on must not leave it with no log and a vote."""
    with (home / VOTELESS_FILE).open("wb") as file:
        sync_descriptor(file.fileno())
    sync_directory(home)


def regain_vote(home: Path) -> None:
    """The node was removed from the voters and may be added again."""
    (home / VOTELESS_FILE).unlink(missing_ok=True)


async def note_members(home: Path, coordinator: Coordinator) -> None:
    """Keep the file that says who is in the cluster up to date, until cancelled."""
    noted = read_last_seen(home)
    async for state in coordinator.changes():
        if state.nodes and (seen := LastSeen.of(state)) != noted:
            noted = seen
            try:
                await anyio.to_thread.run_sync(write_last_seen, home, seen)
            except OSError as error:
                logger.warning("cannot note who is in the cluster: {}", error.strerror or error)
