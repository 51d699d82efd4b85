"""Runs placement in warm processes of its own, so that a long solve never holds up the node.

What is decided and what is only asked (previews, what-if, why) are solved in two processes, one at a time each: no
question ever makes a placement wait. The state is put into bytes in a thread, node by node, since in a large cluster
that alone would hold the event loop up.
"""

from collections.abc import Callable, Mapping
from functools import partial

import anyio
import anyio.to_process
import anyio.to_thread
import msgspec
from loguru import logger

from exo.master.solver_jobs import (
    Explaining,
    Explanation,
    Imagining,
    Placement,
    Placing,
    Previewing,
    Solution,
    Task,
    make_ready,
    pack_job,
    solve_job,
)
from exo.shared.types.commands import Decided, Planned, Preview, Refusal
from exo.shared.types.ids import InstanceId
from exo.shared.types.instances import PlacementRequest
from exo.shared.types.state import State
from exo.shared.types.what_if import Change

__all__ = ["Placement", "Solver", "is_constraint_layer_wanted"]

BUSY = "planner_busy"
QUESTIONS_WAITING_MAX = 16
"""More are refused: each may take the whole deadline."""


class Solver:
    """One decision and one question at a time; processes are started when first needed and stay for the next.

    Args:
        deadline_s: How long one job may search; the best plan so far is then the answer.
        has_constraint_layer: Whether side constraints are searched for long.
    """

    def __init__(self, *, deadline_s: float = 5.0, has_constraint_layer: bool = True) -> None:
        self._deadline_s = deadline_s
        self.has_constraint_layer = has_constraint_layer
        self._deciding = anyio.CapacityLimiter(1)
        self._asking = anyio.CapacityLimiter(1)

    async def warm_up(self) -> None:
        """Start the solver process, which then reads what it needs, so that no solve waits for that.

        Where that fails, the first solve starts it, or says why it cannot.
        """
        try:
            await anyio.to_process.run_sync(make_ready, cancellable=True, limiter=self._deciding)
        except (anyio.BrokenWorkerProcess, OSError) as error:
            logger.debug("the solver process did not start: {}", error)

    async def place(self, state: State, request: PlacementRequest) -> Placement | Refusal:
        """Solve a placement on `state`."""
        solution = await self._solve(state, request, Placing(), self._deciding)
        answer = solution.placement or solution.refusal
        assert answer is not None
        return answer

    async def preview(self, state: State, request: PlacementRequest) -> tuple[Preview, ...] | Refusal:
        """Solve several ways to place the model; a refusal where too many questions wait already."""
        solution = await self._ask(state, request, Previewing())
        if solution.refusal is not None:
            if solution.refusal.code == BUSY:
                return solution.refusal
            return (Preview(title="Fastest", request=request, refusal=solution.refusal),)
        return solution.previews or ()

    async def plan(self, state: State, request: PlacementRequest, change: Change) -> Planned | Refusal:
        """Solve a placement on `state` as it is, or as it would be; a refusal where the change itself cannot be."""
        solution = await self._ask(state, request, Imagining(change=change))
        if solution.planned is not None:
            return solution.planned
        assert solution.refusal is not None
        return solution.refusal

    async def explain(
        self,
        state: State,
        request: PlacementRequest,
        decision: Decided,
        instance_id: InstanceId,
        *,
        is_present: bool,
    ) -> Explanation | Refusal:
        """Make a decision again on what it was made on.

        Args:
            state: As it is now.
            request: What the person asked for.
            decision: The decision.
            instance_id: What it is about.
            is_present: Say also where it would be placed now.
        """
        task = Explaining(decision=decision, instance_id=instance_id, is_present=is_present)
        solution = await self._ask(state, request, task)
        answer = solution.explanation or solution.refusal
        assert answer is not None
        return answer

    async def aside(self, job: Callable[[bytes], bytes], pack: Callable[[], bytes]) -> bytes:
        """Have another job of placement done in the solver process.

        Args:
            job: What is done there, a function of a module.
            pack: Makes what it takes; called in a thread.
        """
        packed = await anyio.to_thread.run_sync(pack)
        return await anyio.to_process.run_sync(job, packed, cancellable=True, limiter=self._deciding)

    async def _ask(
        self, state: State, request: PlacementRequest, task: Previewing | Imagining | Explaining
    ) -> Solution:
        waiting = self._asking.statistics().tasks_waiting
        if waiting >= QUESTIONS_WAITING_MAX:
            return Solution(refusal=_busy(waiting))
        return await self._solve(state, request, task, self._asking)

    async def _solve(
        self,
        state: State,
        request: PlacementRequest,
        task: Task,
        limiter: anyio.CapacityLimiter,
    ) -> Solution:
        pack = partial(
            pack_job,
            state,
            request,
            task,
            deadline_s=self._deadline_s,
            has_constraint_layer=self.has_constraint_layer,
        )
        packed = await anyio.to_thread.run_sync(pack)
        if isinstance(packed, Refusal):
            return Solution(refusal=packed)
        answer = await anyio.to_process.run_sync(solve_job, packed, cancellable=True, limiter=limiter)
        return msgspec.msgpack.decode(answer, type=Solution)


def is_constraint_layer_wanted(environment: Mapping[str, str]) -> bool:
    """Read `EXO_CSP_PLACEMENT`: `0` leaves the constraint layer out of placement."""
    return environment.get("EXO_CSP_PLACEMENT", "").strip().lower() not in {"0", "false", "no", "off"}


def _busy(waiting: int) -> Refusal:
    return Refusal(
        status=503,
        code=BUSY,
        message=f"{waiting} questions about placement are waiting already; ask again in a moment.",
    )
