"""The node's id: random once, then the same at every start from the same data directory."""

import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from exo.cluster.log.files import sync_directory
from exo.shared.errors import ConfigurationError
from exo.shared.types.ids import NodeId

_SHAPE = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Never a slash: device ids are `<node_id>/<alias>`."""


def load_node_id(home: Path, *, new_id: Callable[[], str] = lambda: secrets.token_hex(8)) -> NodeId:
    """Return the id kept in `<home>/node_id`, created first where it is missing. `home` exists.

    Raises:
        ConfigurationError: The file is damaged, or cannot be read or written.
    """
    path = home / "node_id"
    try:
        if not path.exists():
            draft = home / f".node_id.{os.getpid()}"
            with draft.open("w", encoding="utf-8") as file:
                file.write(new_id() + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
            sync_directory(home)
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise ConfigurationError(
            f"cannot keep the node's id in {path}: {error.strerror or error}; choose another EXO_HOME"
        ) from error
    if not _SHAPE.fullmatch(text):
        raise ConfigurationError(
            f"the node's id in {path} is damaged; restore it, or delete it and the node starts as a new one"
        )
    return NodeId(text)
