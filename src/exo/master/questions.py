"""What is asked of placement without anything being decided: previews, what-if, why."""

from msgspec.structs import replace

from exo.cluster.coordinator import Coordinator
from exo.master.history import read_history
from exo.master.solver import Solver
from exo.shared.near_matches import near_matches
from exo.shared.types.commands import (
    Decided,
    ExplainInstance,
    PlanPlacement,
    PreviewPlacements,
    Previews,
    Question,
    Refusal,
    Reply,
    Why,
)
from exo.shared.types.state import State


async def answer_question(coordinator: Coordinator, solver: Solver, question: Question) -> Reply:
    """Answer on this node, which leads: it has the whole log, and the newest state."""
    match question:
        case PreviewPlacements():
            previews = await solver.preview(coordinator.state, question.request)
            return previews if isinstance(previews, Refusal) else Previews(previews=previews)
        case PlanPlacement():
            return await solver.plan(coordinator.state, question.request, question.change)
        case ExplainInstance():
            return await _explain(coordinator, solver, question)


async def _explain(coordinator: Coordinator, solver: Solver, question: ExplainInstance) -> Reply:
    history = await read_history(coordinator, question.instance_id)
    state = coordinator.state
    if history.request is None or not history.decisions:
        return Refusal(
            status=404,
            code="instance_not_found",
            message=_unknown(state, question.instance_id, history.notes),
            near_matches=near_matches(question.instance_id, state.instances),
        )
    decision = _chosen(history.decisions, question.decision_index)
    if decision is None:
        known = ", ".join(str(one.index) for one in history.decisions if one.index is not None)
        return Refusal(
            status=404,
            code="decision_not_found",
            message=f"Decision {question.decision_index} is not about where {question.instance_id} is; "
            f"{f'those that are: {known}' if known else 'the log no longer has those that were'}.",
        )
    is_last = decision is history.decisions[-1] and question.instance_id in state.instances
    answer = await solver.explain(state, history.request, decision, question.instance_id, is_present=is_last)
    if isinstance(answer, Refusal):
        return answer
    return Why(
        instance_id=question.instance_id,
        request=history.request,
        decisions=tuple(replace(one, basis=b"") for one in history.decisions),
        explained=answer.explained,
        changes=answer.changes,
        today=answer.today,
        deleted_at=history.deleted_at,
        notes=history.notes,
    )


def _unknown(state: State, text: str, notes: tuple[str, ...]) -> str:
    """Say that no instance is called so. A model's name is often given for its instance, and the start of an id."""
    if any(card.model_id == text for node in state.nodes.values() for card in node.identity.models):
        return f"{text} is a model, and no instance of it is placed; place it, or name one that is gone by its id."
    noted = f" ({notes[0]})" if notes else ""
    return (
        f"There is no instance {text!r}, and the log knows of none with that id{noted}; `exo status` lists those there "
        "are, and one that is gone is found by its whole id."
    )


def _chosen(decisions: tuple[Decided, ...], index: int | None) -> Decided | None:
    if index is None:
        return decisions[-1]
    return next((one for one in decisions if one.index == index), None)
