"""A master at work in virtual time, with the real placement beside it in the same process."""

import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps

import anyio

from exo.master.loop import Master
from exo.master.migration import Habits
from exo.master.placement.basis import pack
from exo.master.placement.place import place_instance
from exo.master.solver import Placement, Solver
from exo.shared.types.commands import Refusal
from exo.shared.types.events import Decision
from exo.shared.types.ids import NodeId
from exo.shared.types.instances import PlacementRequest
from exo.shared.types.state import State
from support.coordinator import MemoryCoordinator
from support.virtual_time import run

SOLVE_S = 0.1


def in_virtual_time(story: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Make a test of a story that is told in virtual time."""

    @wraps(story)
    def told_story() -> None:
        run(story())

    # What pytest sees takes no part in its own event loop.
    del told_story.__wrapped__  # type: ignore[attr-defined]
    return told_story


class Beside(Solver):
    """The real placement, in this process: virtual time has no others. It takes a tenth of a second."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[PlacementRequest] = []
        self.meanwhile: list[Callable[[], None]] = []
        """What happens while plans are made: one for each."""
        self.solve_s = SOLVE_S
        self.at_once = 0
        self.at_once_max = 0

    async def place(self, state: State, request: PlacementRequest) -> Placement | Refusal:
        self.requests.append(request)
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        await anyio.sleep(self.solve_s)
        if self.meanwhile:
            self.meanwhile.pop(0)()
        self.at_once -= 1
        answer = place_instance(state, request, should_stop=lambda: False)
        return answer if isinstance(answer, Refusal) else Placement(plan=answer, basis=pack(state, request))

    async def aside(self, job: Callable[[bytes], bytes], pack: Callable[[], bytes]) -> bytes:
        return job(pack())


class Story:
    """A master on the node `a`, and what becomes of the cluster's state."""

    def __init__(self, state: State, migration: Habits | None) -> None:
        self.coordinator = MemoryCoordinator(NodeId("a"), state)
        self.solver = Beside()
        ids = itertools.count(1)
        self.master = Master(self.coordinator, self.solver, lambda: f"id-{next(ids)}", migration=migration)

    @property
    def state(self) -> State:
        return self.coordinator.state

    @property
    def events(self) -> list[type[Decision]]:
        return [type(event) for event in self.coordinator.proposed]

    def become(self, change: Callable[..., State], *arguments: object) -> None:
        self.coordinator.set_state(change(self.state, *arguments))


@asynccontextmanager
async def led(state: State, migration: Habits | None = None) -> AsyncIterator[Story]:
    """Have a master at work on this state; only where habits are given it moves healthy instances, too."""
    story = Story(state, migration)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(story.master.run)
        await anyio.sleep(0.01)
        yield story
        tasks.cancel_scope.cancel()
