"""What the tests of the command line share."""

from collections.abc import Callable
from typing import NamedTuple

from anyio.from_thread import BlockingPortal

from exo.api.context import ApiContext
from support.api_world import World


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]
"""Runs `exo ...` in this process."""


class RunningWorld(NamedTuple):
    """An application, where it answers, and the way into its thread."""

    world: World
    url: str
    portal: BlockingPortal
    context: ApiContext
