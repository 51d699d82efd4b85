"""The key that a node makes for its own user at each start, where programs on its machine need one."""

import os
from pathlib import Path

from exo.api.access_keys import OWNER_ID, PlainKey, create_key
from exo.shared.errors import ConfigurationError
from exo.shared.types.access import KeyId

OWNER_KEY_FILE = Path("keys") / "owner.key"


def make_owner_key(home: Path) -> PlainKey:
    """Return a new key, after leaving it where only the node's user can read it: the command line shows it.

    Raises:
        ConfigurationError: It cannot be written.
    """
    key = PlainKey(KeyId(OWNER_ID), create_key().secret)
    try:
        write_private(home / OWNER_KEY_FILE, f"{key.reveal()}\n")
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {home / OWNER_KEY_FILE}: {error.strerror or error}; "
            "choose another data directory with EXO_HOME or --home"
        ) from error
    return key


def read_owner_key(home: Path) -> str | None:
    """Return the key of the node of this data directory; None where there is none for this user."""
    try:
        return (home / OWNER_KEY_FILE).read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
