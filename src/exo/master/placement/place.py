"""`place_instance`: a request and a state become a plan or a refusal. Greedy first, then the ladder of solvers."""

import difflib
from collections.abc import Callable

from msgspec.structs import replace

from exo.master.placement.costs import cost_rounds
from exo.master.placement.evaluate import violations
from exo.master.placement.explain import explain, gibibytes, refuse_for_memory
from exo.master.placement.greedy import solve_greedy
from exo.master.placement.ladder.answer import Infeasible, Options
from exo.master.placement.problem import ENGINES_BY_FORMAT, Problem, build_problem, context_length_of
from exo.master.placement.soundness import refuse_unsound
from exo.master.placement.weigh import Weighed, weigh, weigh_given
from exo.shared.near_matches import near_matches, unknown_model_sentence
from exo.shared.types.commands import Refusal
from exo.shared.types.ids import ModelId
from exo.shared.types.instances import PlacementRequest, Plan
from exo.shared.types.models import ModelCard
from exo.shared.types.state import State

ShouldStop = Callable[[], bool]


def place_instance(
    state: State,
    request: PlacementRequest,
    *,
    should_stop: ShouldStop,
    has_constraint_layer: bool = True,
) -> Plan | Refusal:
    """Decide which devices run which layers of the model that is asked for.

    Pure: equal state and request give an equal plan. `should_stop` is asked between steps of a long search; the
    best plan so far is then the answer. Without `has_constraint_layer`, side constraints are not searched for long.
    """
    model = find_model(state, request.model_id)
    if isinstance(model, Refusal):
        return model
    engine = choose_engine(model, request)
    if isinstance(engine, Refusal):
        return engine
    refusal = refuse_unsound(model, request) or _check_request(model, request)
    if refusal is not None:
        return refusal
    problem = build_problem(state, model, request, engine)
    refusal = _check_candidates(state, problem)
    if refusal is not None:
        return refusal
    options = Options(has_constraint_layer=has_constraint_layer)
    weighed = _solve(state, problem, should_stop, options)
    if isinstance(weighed, Infeasible):
        fits = _would_fit_empty(state, problem, should_stop, options)
        return refuse_for_memory(problem, would_fit_empty=fits, relaxations=weighed.relaxations)
    plan = Plan(
        stages=weighed.stages,
        sharding="pipeline",
        engine=engine,
        context_length=problem.context_length,
        concurrency=request.concurrency,
        method=weighed.method,
        prediction=weighed.prediction,
        certificate=weighed.certificate,
        excluded=problem.excluded,
        explanation=explain(problem, weighed, should_stop=should_stop),
        state_index=state.index,
        baseline=weighed.baseline,
        is_truncated=weighed.is_truncated,
    )
    wrong = violations(
        plan.stages,
        model=model,
        context_length=plan.context_length,
        concurrency=plan.concurrency,
        pool_by_device=problem.pool_by_device,
        free_bytes_by_pool=problem.free_bytes_by_pool,
    )
    if wrong:
        return Refusal(
            status=500, code="plan_rejected", message=f"The plan failed its own check: {wrong[0]}."
        )
    return plan


def _solve(state: State, problem: Problem, should_stop: ShouldStop, options: Options) -> Weighed | Infeasible:
    """Take the greedy's plan, which is there at once, and the ladder's instead where it is faster."""
    stages = solve_greedy(problem)
    costs = cost_rounds(state, problem)
    if problem.request.layer_split:
        if stages is None:
            return Infeasible(code="infeasible", reasons=("The split that was given does not fit.",))
        return weigh_given(costs, stages, "given split")
    return weigh(problem, costs, stages, should_stop=should_stop, options=options)


def _would_fit_empty(state: State, problem: Problem, should_stop: ShouldStop, options: Options) -> bool:
    """Would it fit if everything were free? Then it may fit later: a conflict with the present, not more."""
    emptied = replace(
        problem,
        candidates=tuple(
            replace(one, memory_free_bytes=one.memory_total_bytes) for one in problem.candidates
        ),
    )
    return isinstance(_solve(state, emptied, should_stop, replace(options, wants_any=True)), Weighed)


def find_model(state: State, model_id: ModelId) -> ModelCard | Refusal:
    """Return the card of a model that some node has, a sound copy before a broken one, or a refusal."""
    cards = [
        card
        for _, node in sorted(state.nodes.items())
        for card in node.identity.models
        if card.model_id == model_id
    ]
    # Connected nodes' copies decide: a node that is away must not dictate the fingerprint.
    near = [
        card
        for _, node in sorted(state.nodes.items())
        if node.is_connected
        for card in node.identity.models
        if card.model_id == model_id
    ]
    sound = [card for card in near if card.problem is None]
    if sound:
        # Copies may differ; the most common one is the one that most nodes can run together.
        counts = {card.fingerprint: 0 for card in sound}
        for card in sound:
            counts[card.fingerprint] += 1
        return max(sound, key=lambda card: (counts[card.fingerprint], card.fingerprint))
    if cards:
        problem = next((card.problem for card in cards if card.problem), None)
        if problem is None:
            return Refusal(
                status=409,
                code="model_not_here_now",
                message=f"Only nodes that are not connected have {model_id}; "
                "start them, or copy the model to one that is connected.",
            )
        return Refusal(status=422, code="model_unusable", message=f"{model_id} cannot be loaded: {problem}")
    return unknown_model(state, model_id)


def unknown_model(state: State, model_id: ModelId) -> Refusal:
    """The refusal for a model that no node has, with the names that look like it."""
    known = {card.model_id for node in state.nodes.values() for card in node.identity.models}
    return Refusal(
        status=404,
        code="model_not_found",
        message=unknown_model_sentence(model_id, known),
        near_matches=near_matches(model_id, known),
    )


def choose_engine(model: ModelCard, request: PlacementRequest) -> str | Refusal:
    """Return the engine that runs the model's format: the one asked for, or the preferred one."""
    able = ENGINES_BY_FORMAT.get(model.format, ())
    if request.engine == "auto" and able:
        return able[0]
    if request.engine in able:
        return request.engine
    return Refusal(
        status=422,
        code="engine_unsuitable",
        message=f"The engine {request.engine!r} cannot run {model.model_id} ({model.format}); "
        f"those that can: {', '.join(able) or 'none'}.",
    )


def _check_request(model: ModelCard, request: PlacementRequest) -> Refusal | None:
    context_length = context_length_of(model, request)
    if context_length > model.context_length_max:
        return Refusal(
            status=422,
            code="context_too_long",
            message=f"{model.model_id} knows {model.context_length_max:,} tokens of context at most; "
            f"{context_length:,} were asked for.",
        )
    if request.sharding in {"tensor", "hybrid"}:
        return Refusal(
            status=422,
            code="sharding_unsupported",
            message=f"The {request.sharding} sharding is not supported by the MLX engine yet; "
            "ask for pipeline or auto.",
        )
    if request.min_nodes > model.layer_count:
        return Refusal(
            status=422,
            code="too_few_layers",
            message=f"{model.model_id} has {model.layer_count} layers, too few for {request.min_nodes} nodes.",
        )
    split = request.layer_split
    if split and (sum(split) != model.layer_count or min(split) < 1):
        return Refusal(
            status=422,
            code="bad_layer_split",
            message=f"layer_split adds up to {sum(split)} layers; {model.model_id} has {model.layer_count}, "
            "and every stage needs at least one.",
        )
    return None


def _check_candidates(state: State, problem: Problem) -> Refusal | None:
    request = problem.request
    known = set(state.nodes) | {d.device_id for n in state.nodes.values() for d in n.identity.devices}
    unknown = [
        name for name in (*request.node_ids, *request.device_ids, *request.exclude) if name not in known
    ]
    if unknown:
        return Refusal(
            status=404,
            code="unknown_node_or_device",
            message=f"{unknown[0]!r} is no node or device of this cluster; `exo status` lists them.",
            near_matches=tuple(difflib.get_close_matches(unknown[0], sorted(known), n=3, cutoff=0.5)),
        )
    wanted = max(request.min_nodes, len(request.layer_split), 1)
    if len(problem.candidates) >= wanted:
        return None
    reasons = "; ".join(f"{one.device_id}: {one.reason}" for one in problem.excluded)
    free = sum(problem.free_bytes_by_pool.values())
    return Refusal(
        status=409,
        code="too_few_nodes",
        message=f"{len(problem.candidates)} of the {wanted} nodes wanted can take part "
        f"({gibibytes(free)} free)" + (f": {reasons}." if reasons else "; start more with `uv run exo`."),
    )
