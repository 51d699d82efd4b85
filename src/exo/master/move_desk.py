"""What everybody needs who moves instances: the newest state, plans for them, one decision at a time, and the time."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import anyio
import msgspec
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.master.replacement_job import KEEP_DEADLINE_S, KeepJob, Kept, keep_job, pack_keep_job
from exo.master.solver import Placement, Solver
from exo.shared.errors import NoMasterError
from exo.shared.types.events import InstanceMoved, InstanceStranded, InstanceWaits
from exo.shared.types.ids import InstanceId
from exo.shared.types.instances import Instance, PlacementRequest
from exo.shared.types.state import State


class MoveDesk:
    """One for all who move instances, so that none is ever moved by two at a time.

    Args:
        coordinator: Where decisions are committed.
        solver: Places models.
        deciding: Held from the look at the state to the commit; shared with what else the master decides.
        clock: Monotonic seconds, as the event loop sleeps.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        solver: Solver,
        deciding: anyio.Lock,
        *,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self.coordinator = coordinator
        self.solver = solver
        self.clock = clock
        self._deciding = deciding

    @property
    def state(self) -> State:
        """As it is now."""
        return self.coordinator.state

    @property
    def is_leading(self) -> bool:
        """Whether this node decides."""
        return self.coordinator.leadership.is_self

    @asynccontextmanager
    async def newest(self) -> AsyncGenerator[State | None]:
        """Give the newest state, on which nobody else decides until the block ends; None: this node does not lead."""
        async with self._deciding:
            yield self.state if self.is_leading else None

    async def commit(
        self, event: InstanceMoved | InstanceStranded | InstanceWaits, instance: Instance
    ) -> None:
        """Commit what was decided on the newest state.

        Raises:
            NoMasterError: This node leads no more.
        """
        await self.coordinator.propose([event], cause_id=instance.created_by)

    async def keep(
        self, freed: State, instance: Instance, request: PlacementRequest, answer: Placement
    ) -> Kept:
        """Have the solver process say which plan to take for an instance: see `keep_job`.

        Args:
            freed: The state without the instance.
            instance: What is placed.
            request: What was asked for.
            answer: The fastest plan for it.
        """
        job = KeepJob(
            state=freed,
            instance=instance,
            request=request,
            fastest=answer.plan,
            deadline_s=KEEP_DEADLINE_S,
            has_constraint_layer=self.solver.has_constraint_layer,
        )
        answered = await self.solver.aside(keep_job, partial(pack_keep_job, job))
        return msgspec.msgpack.decode(answered, type=Kept)

    @contextmanager
    def enduring(self, instance_id: InstanceId, what: str, *, level: str) -> Generator[None]:
        """Have no error in this block end the master: whoever leads next sees the same instance.

        Args:
            instance_id: What the block is about.
            what: What does not come about, as in `is not moved now`.
            level: At which an error is logged that does happen.
        """
        try:
            yield
        except (NoMasterError, anyio.BrokenWorkerProcess, OSError) as error:
            logger.log(level, "{} {}: {}", instance_id, what, error)
        except Exception:  # A fault of a solver would end this master, and then the next one.
            logger.exception("{} {}", instance_id, what)
