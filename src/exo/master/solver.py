"""Runs placement in a warm process of its own, so that a long solve never holds up the node."""

import time
from collections.abc import Callable, Mapping

import anyio
import anyio.to_process
import msgspec
from loguru import logger

from exo.shared.types.commands import Preview, Refusal
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State


class _Job(msgspec.Struct, frozen=True, kw_only=True):
    state: State
    request: PlacementRequest
    deadline_s: float
    has_constraint_layer: bool
    is_preview: bool


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A plan with what it was decided on."""

    plan: Plan
    basis: bytes
    """See `exo.master.placement.basis`."""


class Solution(msgspec.Struct, frozen=True, kw_only=True):
    """What the solver process answers with; exactly one field is set."""

    placement: Placement | None = None
    refusal: Refusal | None = None
    previews: tuple[Preview, ...] | None = None


class Solver:
    """One solve at a time; the process is started by `warm_up` or the first one, and stays for the next."""

    def __init__(self, *, deadline_s: float = 5.0, has_constraint_layer: bool = True) -> None:
        self._deadline_s = deadline_s
        self._has_constraint_layer = has_constraint_layer
        self._one_at_a_time = anyio.CapacityLimiter(1)

    async def warm_up(self) -> None:
        """Start the solver process, which then reads what it needs, so that no solve waits for that.

        Where that fails, the first solve starts it, or says why it cannot.
        """
        try:
            await anyio.to_process.run_sync(make_ready, cancellable=True, limiter=self._one_at_a_time)
        except (anyio.BrokenWorkerProcess, OSError) as error:
            logger.debug("the solver process did not start: {}", error)

    async def place(self, state: State, request: PlacementRequest) -> Placement | Refusal:
        """Solve a placement on `state`."""
        solution = await self._solve(state, request, is_preview=False)
        answer = solution.placement or solution.refusal
        assert answer is not None
        return answer

    async def preview(self, state: State, request: PlacementRequest) -> tuple[Preview, ...]:
        """Solve several ways to place the model."""
        return (await self._solve(state, request, is_preview=True)).previews or ()

    async def aside(self, job: Callable[[bytes], bytes], packed: bytes) -> bytes:
        """Have another job of placement done in the solver process; `job` is a function of a module."""
        return await anyio.to_process.run_sync(job, packed, cancellable=True, limiter=self._one_at_a_time)

    async def _solve(self, state: State, request: PlacementRequest, *, is_preview: bool) -> Solution:
        job = _Job(
            state=state,
            request=request,
            deadline_s=self._deadline_s,
            has_constraint_layer=self._has_constraint_layer,
            is_preview=is_preview,
        )
        answer = await anyio.to_process.run_sync(
            solve_job, msgspec.msgpack.encode(job), cancellable=True, limiter=self._one_at_a_time
        )
        return msgspec.msgpack.decode(answer, type=Solution)


def is_constraint_layer_wanted(environment: Mapping[str, str]) -> bool:
    """Read `EXO_CSP_PLACEMENT`: `0` leaves the constraint layer out of placement."""
    return environment.get("EXO_CSP_PLACEMENT", "").strip().lower() not in {"0", "false", "no", "off"}


def make_ready() -> None:
    """Run in the solver process: read the solvers and the catalogue of devices, once."""
    import exo.master.placement.previews  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from exo.shared.device_figures import catalogue

    catalogue()


def solve_job(packed: bytes) -> bytes:
    """Run in the solver process: a packed job in, a packed solution out."""
    from exo.master.placement.basis import pack
    from exo.master.placement.place import place_instance
    from exo.master.placement.previews import preview_placements

    make_ready()
    job = msgspec.msgpack.decode(packed, type=_Job)
    started_s = time.monotonic()

    def should_stop() -> bool:
        return time.monotonic() - started_s > job.deadline_s

    layer = job.has_constraint_layer
    if job.is_preview:
        previews = preview_placements(
            job.state, job.request, should_stop=should_stop, has_constraint_layer=layer
        )
        return msgspec.msgpack.encode(Solution(previews=previews))
    answer = place_instance(job.state, job.request, should_stop=should_stop, has_constraint_layer=layer)
    if isinstance(answer, Refusal):
        return msgspec.msgpack.encode(Solution(refusal=answer))
    plan = msgspec.structs.replace(answer, solve_ms=(time.monotonic() - started_s) * 1000)
    basis = pack(job.state, job.request, has_constraint_layer=layer)
    return msgspec.msgpack.encode(Solution(placement=Placement(plan=plan, basis=basis)))
