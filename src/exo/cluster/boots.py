"""How often this node has started, as its disk remembers: what it numbers is then never numbered twice."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from exo.cluster.log.files import sync_directory
from exo.shared.errors import ConfigurationError

NUMBERS_PER_BOOT = 2**32
"""Proposals that a node can make between two starts."""
_HOUR_S = 3600
_EPOCH_S = 1_577_836_800
"""The first of January 2020, in UTC."""


def count_boot(home: Path, *, now_s: Callable[[], float] = time.time) -> int:
    """Return which start of this node it is, the first being 1. `home` exists.

    Where the count is damaged, it goes on from the hours since 2020: more than there were starts.

    Raises:
        ConfigurationError: The count cannot be kept.
    """
    path = home / "boots"
    try:
        boot = _read(path, now_s) + 1
        draft = home / f".boots.{os.getpid()}"
        with draft.open("w", encoding="ascii") as file:
            file.write(f"{boot}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_directory(home)
    except OSError as error:
        raise ConfigurationError(
            f"cannot count this node's starts in {path}: {error.strerror or error}; "
            "make room there, or choose another EXO_HOME"
        ) from error
    return boot


def _read(path: Path, now_s: Callable[[], float]) -> int:
    try:
        text = path.read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        return 0
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    return max(0, int(now_s()) - _EPOCH_S) // _HOUR_S
