"""What `exo join` and the node of a data directory tell each other: `<home>/keys/token` and `<home>/keys/join`.

The first is the wish that waits to be fulfilled, with a token or without one; the second is what came of it.
"""

from pathlib import Path

import msgspec

from exo.api.access_owner import write_private
from exo.cluster.trust.certificates import to_der
from exo.cluster.trust.token import authority_hash
from exo.shared.errors import ConfigurationError
from exo.shared.types.state import State

TOKEN_FILE = Path("keys") / "token"
OUTCOME_FILE = Path("keys") / "join"


class PendingJoin(msgspec.Struct, frozen=True, kw_only=True):
    """What `exo join` left. Its `repr` does not show the token."""

    token: str | None = None
    """None: the node asks, and waits until somebody approves it."""
    address: str | None = None
    """`HOST:PORT` of a node of the cluster; None: whichever is found."""

    def __repr__(self) -> str:
        return f"PendingJoin(address={self.address!r})"


class JoinOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Why this node is not in the cluster that it was to join."""

    text: str
    is_waiting: bool
    """It goes on by itself."""


def write_pending_join(home: Path, pending: PendingJoin) -> None:
    """Leave for the node what it is to join with, readable by its user only.

    Raises:
        ConfigurationError: It cannot be written.
    """
    try:
        write_join_outcome(home, None)
        write_private(home / TOKEN_FILE, msgspec.json.encode(pending).decode() + "\n")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {home / TOKEN_FILE}: {error.strerror or error}; "
            "choose another data directory with EXO_HOME or --home"
        ) from error


def read_pending_join(home: Path) -> PendingJoin | None:
    """Return the token that waits, or None. `remove_pending_join` once it was used or refused for good.

    Raises:
        ConfigurationError: There is one that cannot be read.
    """
    path = home / TOKEN_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=PendingJoin)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigurationError(
            f"cannot read the join token in {path}; give it again: exo join TOKEN (or delete the file)"
        ) from error


def remove_pending_join(home: Path) -> None:
    """Forget the token, if there is one."""
    (home / TOKEN_FILE).unlink(missing_ok=True)


def write_join_outcome(home: Path, outcome: JoinOutcome | None) -> None:
    """Note for `exo doctor` how joining goes; None: there is nothing to say any more.

    Raises:
        OSError: It cannot be written.
    """
    path = home / OUTCOME_FILE
    if outcome is None:
        path.unlink(missing_ok=True)
    else:
        write_private(path, msgspec.json.encode(outcome).decode() + "\n")


def read_join_outcome(home: Path) -> JoinOutcome | None:
    """Return how joining went last, if there is anything to say about it."""
    try:
        return msgspec.json.decode((home / OUTCOME_FILE).read_bytes(), type=JoinOutcome)
    except (OSError, msgspec.MsgspecError):
        return None


def reason_not_to_join(state: State, wanted_authority_hash: str | None, *, has_master: bool) -> str | None:
    """Return why a node cannot join the cluster with this authority, or None when it can.

    A cluster with something to lose is never given up: with another cluster's certificate in the place of its own,
    the node would belong to neither.

    Args:
        state: As folded on the node.
        wanted_authority_hash: Of the cluster that it is to join; None: of another one than its own.
        has_master: It reaches its master. A member that does not may have been removed, or away for too long.
    """
    access = state.access
    if access.authority_pem is not None:
        if authority_hash(to_der(access.authority_pem)) == wanted_authority_hash:
            return "this node is a member of that cluster already" if has_master else None
        others = sum(node.is_connected for node in state.nodes.values()) > 1
        step = "remove it there first (exo node remove), or " if others else ""
        return (
            "this node does not join another cluster: its own has an authority, and so members or tokens of its own; "
            f"{step}start it with a new data directory (EXO_HOME)"
        )
    if access.keys or state.instances:
        what = "API keys" if access.keys else "instances"
        step = "exo key delete ID" if access.keys else "exo delete ID"
        return (
            f"this node does not join another cluster: its own has {what}, which would be lost; delete them "
            f"({step}), or start it with a new data directory (EXO_HOME), then join again"
        )
    return None
