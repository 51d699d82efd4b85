"""`<home>/keys/token`: a join token that waits to be used by the node of a data directory."""

from pathlib import Path

import msgspec

from exo.api.access_owner import write_private
from exo.shared.errors import ConfigurationError

TOKEN_FILE = Path("keys") / "token"


class PendingJoin(msgspec.Struct, frozen=True, kw_only=True):
    """What `exo join` left. Its `repr` does not show the token."""

    token: str
    address: str | None = None
    """`HOST:PORT` of a node of the cluster; None: whichever is found."""

    def __repr__(self) -> str:
        return f"PendingJoin(address={self.address!r})"


def write_pending_join(home: Path, pending: PendingJoin) -> None:
    """Leave a token for the node, readable by its user only.

    Raises:
        ConfigurationError: It cannot be written.
    """
    try:
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
