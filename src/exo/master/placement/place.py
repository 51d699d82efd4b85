"""`place_instance`: a request and a state become a plan or a refusal. Greedy first, then the ladder of solvers."""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from exo.master.placement.asked import check_candidates, check_groups, check_names, check_request
from exo.master.placement.evaluate import broken_wishes, violations
from exo.master.placement.explain import explain, refuse_for_memory, refuse_sharding
from exo.master.placement.ladder.answer import Infeasible, Options
from exo.master.placement.problem import Problem, build_problem
from exo.master.placement.reasons import reasons_of
from exo.master.placement.solving import Means, solve_placement, would_fit_empty
from exo.master.placement.soundness import refuse_unsound
from exo.shared.near_matches import near_matches, unknown_model_sentence
from exo.shared.types.commands import Refusal
from exo.shared.types.ids import ModelId
from exo.shared.types.instances import PlacementRequest, Plan, Sharding, StagePlan
from exo.shared.types.models import ENGINES_BY_FORMAT, TENSOR_ENGINES, ModelCard
from exo.shared.types.state import State

ShouldStop = Callable[[], bool]


def place_instance(
    state: State,
    request: PlacementRequest,
    *,
    should_stop: ShouldStop,
    has_constraint_layer: bool = True,
    tensor_engines: frozenset[str] = TENSOR_ENGINES,
) -> Plan | Refusal:
    """Decide which devices run which layers of the model that is asked for.

    Pure: equal state and request give an equal plan. `should_stop` is asked between steps of a long search; the
    best plan so far is then the answer. Without `has_constraint_layer`, side constraints are not searched for long.
    `tensor_engines` are those that can run a stage on several GPUs.
    """
    model = find_model(state, request.model_id)
    if isinstance(model, Refusal):
        return model
    engine = choose_engine(model, request)
    if isinstance(engine, Refusal):
        return engine
    refusal = refuse_unsound(model, request) or check_request(model, request) or check_names(state, request)
    if refusal is not None:
        return refusal
    problem = build_problem(state, model, request, engine)
    means = Means(options=Options(has_constraint_layer=has_constraint_layer), tensor_engines=tensor_engines)
    if request.sharding in {"tensor", "hybrid"} and engine not in tensor_engines:
        able = replace(means, tensor_engines=tensor_engines | {engine})
        would = _place(state, problem, should_stop, able, wants_prices=False)
        return refuse_sharding(engine, request, would)
    return _place(state, problem, should_stop, means, wants_prices=True)


def _place(
    state: State, problem: Problem, should_stop: ShouldStop, means: Means, *, wants_prices: bool
) -> Plan | Refusal:
    """Solve a problem. Prices of what is left out take solves of their own."""
    request = problem.request
    refusal = check_candidates(state, problem) or check_groups(state, problem)
    if refusal is not None:
        return refusal
    solved = solve_placement(state, problem, should_stop=should_stop, means=means)
    problem, weighed = solved.problem, solved.answer
    if isinstance(weighed, Infeasible):
        fits = would_fit_empty(state, problem, should_stop, means)
        return refuse_for_memory(problem, would_fit_empty=fits, relaxations=weighed.relaxations)
    stops = should_stop if wants_prices else _at_once
    reasons = reasons_of(problem, solved.costs, weighed, should_stop=stops)
    excluded = sorted((*reasons.unused, *problem.excluded), key=lambda one: one.device_id)
    plan = Plan(
        stages=reasons.stages,
        sharding=sharding_of(reasons.stages),
        engine=problem.engine,
        context_length=problem.context_length,
        concurrency=request.concurrency,
        method=weighed.method,
        prediction=weighed.prediction,
        certificate=weighed.certificate,
        excluded=tuple(excluded),
        explanation=explain(problem, weighed, reasons),
        state_index=state.index,
        baseline=weighed.baseline,
        is_truncated=weighed.is_truncated,
        binding=reasons.binding,
        heterogeneity=solved.costs.heterogeneity,
    )
    return _checked(state, problem, plan)


def _at_once() -> bool:
    return True


def sharding_of(stages: Sequence[StagePlan]) -> Sharding:
    """Return how a plan splits the model: by layers, within layers, or both."""
    if all(len(stage.device_ids) == 1 for stage in stages):
        return "pipeline"
    return "tensor" if len(stages) == 1 else "hybrid"


def _checked(state: State, problem: Problem, plan: Plan) -> Plan | Refusal:
    """Return the plan, or the refusal that says what is wrong with it, which is nobody's fault but the solvers'."""
    wrong = violations(
        plan.stages,
        model=problem.model,
        context_length=plan.context_length,
        concurrency=plan.concurrency,
        pool_by_device=problem.pool_by_device,
        free_bytes_by_pool=problem.free_bytes_by_pool,
    )
    zones = {node_id: node.identity.zone for node_id, node in state.nodes.items()}
    wrong.extend(broken_wishes(plan.stages, problem.request, zones))
    if wrong:
        return Refusal(
            status=500, code="plan_rejected", message=f"The plan failed its own check: {wrong[0]}."
        )
    return plan


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
        f"those that can: {', '.join(able)}."
        if able
        else f"No engine here can run {model.format}, the format of {model.model_id}; fetch it as safetensors.",
    )
