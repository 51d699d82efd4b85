"""The garbage collector, set for a process with a large state that lives for months."""

import gc

_YOUNG_MAX = 20_000
"""Objects made and not freed before the youngest are looked through; by default 700, a few messages' worth."""
_MIDDLE_EVERY = 20
_ALL_EVERY = 50


def settle_garbage_collector() -> None:
    """Look through everything rarely, and never again through what is there now. Call when all is loaded.

    Events and states refer to nothing that refers back to them: counting references frees nearly everything, and a
    look through a thousand connections stops the event loop for as long as a decision may take to arrive.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_MAX, _MIDDLE_EVERY, _ALL_EVERY)
