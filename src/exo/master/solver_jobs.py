"""What the solver process is asked and answers: packed in the node, in a thread; solved and packed in that process."""

import time

import msgspec

from exo.shared.types.commands import Decided, Explained, Planned, Preview, Refusal
from exo.shared.types.ids import InstanceId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.state import State
from exo.shared.types.what_if import Change


class Placing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Decide where a model goes."""


class Previewing(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Several ways side by side."""


class Imagining(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One plan, on the cluster as it is and as it would be."""

    change: Change


class Explaining(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A decision made again; where the instance is still there and it is its last, also where it would be now."""

    decision: Decided
    instance_id: InstanceId
    is_present: bool


Task = Placing | Previewing | Imagining | Explaining


class _Job(msgspec.Struct, frozen=True, kw_only=True):
    state: State
    """Reduced to what placement reads."""
    request: PlacementRequest
    deadline_s: float
    has_constraint_layer: bool
    task: Task


class _PackedJob(msgspec.Struct, frozen=True, kw_only=True):
    """The same on its way to the solver process."""

    state: msgspec.Raw
    request: PlacementRequest
    deadline_s: float
    has_constraint_layer: bool
    task: Task


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """A plan with what it was decided on."""

    plan: Plan
    basis: bytes
    """See `exo.master.placement.basis`."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """A decision made again."""

    explained: Explained
    changes: tuple[str, ...]
    today: Preview | None


class Solution(msgspec.Struct, frozen=True, kw_only=True):
    """What the solver process answers with; exactly one field is set."""

    placement: Placement | None = None
    refusal: Refusal | None = None
    previews: tuple[Preview, ...] | None = None
    planned: Planned | None = None
    explanation: Explanation | None = None


def pack_job(
    state: State,
    request: PlacementRequest,
    task: Task,
    *,
    deadline_s: float,
    has_constraint_layer: bool,
) -> bytes | Refusal:
    """Run in a thread: a job for `solve_job`, or the refusal where nobody has the model."""
    from exo.master.placement.basis import encode_reduced
    from exo.master.placement.place import find_model

    if not isinstance(task, Explaining):
        # Here all models are known, so that those with names alike are told.
        model = find_model(state, request.model_id)
        if isinstance(model, Refusal):
            return model
    return msgspec.msgpack.encode(
        _PackedJob(
            state=encode_reduced(state, request),
            request=request,
            deadline_s=deadline_s,
            has_constraint_layer=has_constraint_layer,
            task=task,
        )
    )


def make_ready() -> None:
    """Run in the solver process: read the solvers and the catalogue of devices, once."""
    import exo.master.what_if  # pyright: ignore[reportUnusedImport]
    import exo.master.why  # noqa: F401  # pyright: ignore[reportUnusedImport]
    from exo.shared.device_figures import catalogue

    catalogue()


class _Time:
    """The time of one job, shared among its solves."""

    def __init__(self, deadline_s: float) -> None:
        self._end_s = time.monotonic() + deadline_s

    def should_stop(self) -> bool:
        return time.monotonic() > self._end_s

    def share(self, solves_left: int) -> "_Time":
        now_s = time.monotonic()
        return _Time(max(0.0, self._end_s - now_s) / max(1, solves_left))

    def __call__(self) -> bool:
        return self.should_stop()


def solve_job(packed: bytes) -> bytes:
    """Run in the solver process: a packed job in, a packed solution out."""
    make_ready()
    job = msgspec.msgpack.decode(packed, type=_Job)
    clock = _Time(job.deadline_s)
    match job.task:
        case Placing():
            solution = _place(job, clock)
        case Previewing():
            solution = _preview(job, clock)
        case Imagining():
            solution = _imagine(job, job.task.change, clock)
        case Explaining():
            solution = _explain(job, job.task, clock)
    return msgspec.msgpack.encode(solution)


def _place(job: _Job, clock: _Time) -> Solution:
    from exo.master.placement.basis import pack
    from exo.master.placement.place import place_instance

    layer = job.has_constraint_layer
    started_s = time.monotonic()
    answer = place_instance(job.state, job.request, should_stop=clock, has_constraint_layer=layer)
    if isinstance(answer, Refusal):
        return Solution(refusal=answer)
    plan = msgspec.structs.replace(answer, solve_ms=(time.monotonic() - started_s) * 1000)
    basis = pack(job.state, job.request, has_constraint_layer=layer)
    return Solution(placement=Placement(plan=plan, basis=basis))


def _preview(job: _Job, clock: _Time) -> Solution:
    from exo.master.placement.previews import preview_placements
    from exo.master.remedy import remedy_for

    layer = job.has_constraint_layer
    previews = preview_placements(job.state, job.request, share=clock.share, has_constraint_layer=layer)
    if previews and previews[0].refusal is not None:
        # The first is what was asked for; the others' refusals are of ways that nobody asked for.
        remedy = remedy_for(job.state, job.request, Change(), should_stop=clock, has_constraint_layer=layer)
        previews = (msgspec.structs.replace(previews[0], remedy=remedy), *previews[1:])
    return Solution(previews=previews)


def _imagine(job: _Job, change: Change, clock: _Time) -> Solution:
    from exo.master.what_if import imagine

    answer = imagine(
        job.state, job.request, change, share=clock.share, has_constraint_layer=job.has_constraint_layer
    )
    return Solution(refusal=answer) if isinstance(answer, Refusal) else Solution(planned=answer)


def _explain(job: _Job, task: Explaining, clock: _Time) -> Solution:
    from exo.master.why import explain_decision, place_today

    layer = job.has_constraint_layer
    today = None
    if task.is_present:
        today = place_today(
            job.state,
            task.instance_id,
            job.request,
            share=lambda _: clock.share(4),
            has_constraint_layer=layer,
        )
    explained, changes = explain_decision(
        task.decision, task.instance_id, job.request, job.state, share=clock.share
    )
    return Solution(explanation=Explanation(explained=explained, changes=changes, today=today))
