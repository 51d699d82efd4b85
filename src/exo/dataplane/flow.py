"""How far a stage may run ahead of the client that reads its tokens."""

WINDOW_CHUNKS = 256
"""The first stage stops producing when this many chunks have not been taken yet."""

CONSUMED_EVERY_CHUNKS = 64
"""The API node says what was taken this often: a few times per window, so that a fast reader never waits."""

BACKLOG_BYTES_MAX = 4 * 1024 * 1024
"""A stage makes no more activations while the next one has this much to take."""

ACTIVATIONS_WAITING_MAX = 8
"""A stage stops reading from the one before it while it has this many activations to work on."""
