"""The real solver without its processes: for tests in which their start would take most of the time."""

import anyio
import msgspec

from exo.master.solver import Solver
from exo.master.solver_jobs import Solution, Task, pack_job, solve_job
from exo.shared.types.commands import Refusal
from exo.shared.types.instances import PlacementRequest
from exo.shared.types.state import State


class InlineSolver(Solver):
    """Packs, solves and unpacks as always, here."""

    async def _solve(
        self, state: State, request: PlacementRequest, task: Task, limiter: anyio.CapacityLimiter
    ) -> Solution:
        async with limiter:
            packed = pack_job(state, request, task, deadline_s=60, has_constraint_layer=True)
            if isinstance(packed, Refusal):
                return Solution(refusal=packed)
            return msgspec.msgpack.decode(solve_job(packed), type=Solution)
