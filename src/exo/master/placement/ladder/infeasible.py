"""Says why nothing fits: which single constraint, dropped, would give a plan, and how many bytes are missing."""

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from exo.master.placement.ladder.answer import Infeasible, Options, Relaxation, Solution
from exo.master.placement.ladder.problem import CostProblem, LinkCost, Links
from exo.master.placement.ladder.search import Search

_POOLS_MAX = 4
"""Pools, roomiest first, that are tried with more memory; only the roomiest where each try is dear."""
_DEAR_FROM = 64
_FREE = LinkCost(forward_ns=0, return_ns=0)
_LIMITS = Options(evaluations_max=2_000, branches_max=500, wants_any=True)


def explain_infeasible(
    problem: CostProblem, found: Infeasible, should_stop: Callable[[], bool]
) -> Infeasible:
    """Return the refusal with every single constraint whose removal would help, least change first."""
    # Links cost time, never a plan: without them the question is quick to answer.
    bare = replace(
        problem, links=Links(host=_FREE, zone=_FREE, cluster=_FREE), micro_batches=1, concurrency=1
    )
    relaxations = tuple(_relaxations(bare, should_stop))
    return replace(found, reasons=(*found.reasons, *_totals(problem)), relaxations=relaxations)


def _totals(problem: CostProblem) -> Iterator[str]:
    model = problem.model
    needed = sum(layer.size_bytes for layer in model.layers) + model.only_bytes
    pools = {device.pool_id for device in problem.devices}
    room = sum(pool.room_bytes for pool in problem.pools if pool.pool_id in pools)
    yield f"The model takes {needed} bytes on one device, and more on several; all pools together have {room}."


def _relaxations(problem: CostProblem, should_stop: Callable[[], bool]) -> Iterator[Relaxation]:
    def has_plan(changed: CostProblem) -> bool:
        return not should_stop() and isinstance(Search(changed, should_stop, _LIMITS).run(), Solution)

    if problem.min_stages > 1 and has_plan(replace(problem, min_stages=1)):
        yield Relaxation(
            constraint="min_stages",
            message=f"It would fit on fewer than the {problem.min_stages} stages asked for.",
        )
    for number, rule in enumerate(problem.rules):
        rest = problem.rules[:number] + problem.rules[number + 1 :]
        if has_plan(replace(problem, rules=rest)):
            yield Relaxation(constraint=rule.reason, message=f"It would fit without {rule.reason}.")
    for number, device in enumerate(problem.devices):
        if device.is_required:
            freed = replace(device, is_required=False)
            devices = (*problem.devices[:number], freed, *problem.devices[number + 1 :])
            if has_plan(replace(problem, devices=devices)):
                yield Relaxation(
                    constraint="required device",
                    message=f"It would fit if {device.device_id} need not be used.",
                )
    yield from _shorter_cache(problem, has_plan)
    yield from _more_memory(problem, has_plan)


def _shorter_cache(problem: CostProblem, has_plan: Callable[[CostProblem], bool]) -> Iterator[Relaxation]:
    def with_share(permille: int) -> CostProblem:
        layers = tuple(
            replace(layer, cache_bytes=layer.cache_bytes * permille // 1000) for layer in problem.model.layers
        )
        return replace(problem, model=replace(problem.model, layers=layers))

    if not any(layer.cache_bytes for layer in problem.model.layers) or not has_plan(with_share(0)):
        return
    low, high = 0, 1000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if has_plan(with_share(middle)) else (low, middle)
    yield Relaxation(
        constraint="context",
        message=f"It would fit with {low / 10:.1f} % of the cache: a shorter context or fewer sequences at once.",
    )


def _more_memory(problem: CostProblem, has_plan: Callable[[CostProblem], bool]) -> Iterator[Relaxation]:
    """Find the fewest bytes that, added to one pool, give a plan."""
    model = problem.model
    plenty = sum(layer.size_bytes for layer in model.layers) + len(problem.devices) * (
        model.first_bytes + model.last_bytes
    )
    used = {device.pool_id for device in problem.devices}
    pools = [number for number, pool in enumerate(problem.pools) if pool.pool_id in used]
    pools.sort(key=lambda number: (-problem.pools[number].room_bytes, number))
    best: tuple[int, int] | None = None
    is_dear = bool(problem.rules) or not model.is_uniform or len(problem.devices) > _DEAR_FROM
    for number in pools[: 1 if is_dear else _POOLS_MAX]:

        def with_more(extra_bytes: int, number: int = number) -> CostProblem:
            pool = problem.pools[number]
            grown = replace(pool, room_bytes=pool.room_bytes + extra_bytes)
            return replace(problem, pools=(*problem.pools[:number], grown, *problem.pools[number + 1 :]))

        low, high = 0, plenty if best is None else best[0]
        if not has_plan(with_more(high)):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if has_plan(with_more(middle)) else (middle, high)
        if best is None or high < best[0]:
            best = (high, number)
    if best is not None:
        pool_id = problem.pools[best[1]].pool_id
        yield Relaxation(
            constraint="memory",
            message=f"It misses {best[0]} bytes, if they were in the pool {pool_id}.",
            missing_bytes=best[0],
            pool_id=pool_id,
        )
