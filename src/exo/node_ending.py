"""Sees to it that a node that was told to stop does end, whatever holds it up, and says what that was."""

import faulthandler
import sys
import threading

from loguru import logger

END_MAX_S = 16.0
"""More than all patience with answers, successors, stages, connections and drivers together; less than services are
usually given."""
_WORD_BEFORE_S = 0.2


def end_within(limit_s: float = END_MAX_S) -> None:
    """End this process with code 1 unless it has ended by itself by then, after writing to stderr where each thread is.

    Nothing is lost by that: what was acknowledged is on disk, and stages end with their node. It also holds while the
    interpreter ends, and while a library keeps it from running any Python.

    Args:
        limit_s: From now.
    """
    word = threading.Timer(
        limit_s - _WORD_BEFORE_S,
        logger.error,
        (
            f"the node did not end within {limit_s:g} s, so it is ended now; please report what follows, which says "
            "what held it up",
        ),
    )
    word.daemon = True
    word.start()
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison] -- a program without a console has none.
        faulthandler.dump_traceback_later(limit_s, exit=True)
