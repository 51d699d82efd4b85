"""The host secret: what lets the nodes of one user on one host trust each other without being asked."""

import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from exo.cluster.log.files import sync_directory
from exo.shared.errors import ConfigurationError

SECRET_BYTES = 32


def load_host_secret(path: Path, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> bytes:
    """Return the secret of 32 bytes in `path`, created first where it is missing, by whichever node comes first.

    Raises:
        ConfigurationError: Others than the owner can read it, it is damaged, or it cannot be read or written.
    """
    try:
        if not path.exists():
            _create(path, random_bytes(SECRET_BYTES))
        return _read(path)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use the host secret {path}: {error.strerror or error}; "
            "choose another place with EXO_HOST_SECRET_FILE"
        ) from error


def _create(path: Path, secret: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Written aside and then linked: nobody ever sees half of it, and of several nodes that start at once exactly
    # one wins.
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError:
            # No hard links on this file system. A node that starts in the same instant may lose its own draft to
            # this rename, and then reads what is there.
            if not path.exists():
                draft.replace(path)
        sync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if sys.platform != "win32" and status.st_mode & 0o077:
            raise ConfigurationError(
                f"others than you can read the host secret {path} (mode {status.st_mode & 0o777:03o}); "
                f"make it yours alone: chmod 600 {path} (or delete it, and all your nodes get a new one)"
            )
        if sys.platform != "win32" and status.st_uid != os.geteuid():
            raise ConfigurationError(
                f"the host secret {path} belongs to another user; choose another place with EXO_HOST_SECRET_FILE"
            )
        text = file.read(4096).strip()
    try:
        secret = bytes.fromhex(text.decode())
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise ConfigurationError(
            f"the host secret {path} is damaged: {2 * SECRET_BYTES} hexadecimal digits were expected; "
            "delete it, then restart all your nodes on this host"
        )
    return secret
