"""Refuses problems that no arithmetic should be done on: absurd numbers, unknown names, nothing to place."""

from collections.abc import Iterator

from exo.master.placement.ladder.by_node import NodeLinks
from exo.master.placement.ladder.problem import AVERAGE_TIME_WEIGHT, AtMost, CostProblem, LinkCost

TIME_NS_MAX = 10**12
"""Per layer, stage or hop: 1,000 s. Sums over all layers stay far from the end of 64 bits."""
SIZE_BYTES_MAX = 2**56
LAYERS_MAX = 4096
DEVICES_MAX = 20_000


def complaints(problem: CostProblem) -> list[str]:
    """Return what is wrong with the input, as sentences; an empty list means that it can be solved."""
    return list(_complaints(problem))


def _complaints(problem: CostProblem) -> Iterator[str]:
    if not problem.devices:
        yield "No device may take part; add a machine or lift an exclusion."
    if not problem.model.layers:
        yield "The model has no layers; give the size of each layer."
    if len(problem.model.layers) > LAYERS_MAX:
        yield f"The model has {len(problem.model.layers)} layers; at most {LAYERS_MAX} can be placed."
    if len(problem.devices) > DEVICES_MAX:
        yield f"There are {len(problem.devices)} devices; at most {DEVICES_MAX} can be weighed."
    ids = {device.device_id for device in problem.devices}
    pools = {pool.pool_id for pool in problem.pools}
    if len(ids) < len(problem.devices):
        yield "Two devices have one id; give each its own."
    if len(pools) < len(problem.pools):
        yield "Two memory pools have one id; give each its own."
    homes: dict[str, tuple[str, str]] = {}
    for device in problem.devices:
        if device.pool_id not in pools:
            yield f"Device {device.device_id} takes from the pool {device.pool_id!r}, which is not there."
        home = (device.zone, device.host)
        if homes.setdefault(device.pool_id, home) != home:
            yield f"The pool {device.pool_id!r} is on two hosts; devices share memory only within a host."
        if not _is_between(device.layer_ns, 1, TIME_NS_MAX):
            yield f"Device {device.device_id} takes {device.layer_ns} ns per layer; give 1 to {TIME_NS_MAX}."
        for name, value in (("overhead", device.overhead_ns), ("head", device.head_ns)):
            if not _is_between(value, 0, TIME_NS_MAX):
                yield f"Device {device.device_id} has {value} ns of {name}; give 0 to {TIME_NS_MAX}."
    slowest = max((one.layer_ns for one in problem.devices if type(one.layer_ns) is int), default=0)
    heaviest = max(
        (one.time_weight for one in problem.model.layers if type(one.time_weight) is int), default=0
    )
    if slowest * heaviest > TIME_NS_MAX * AVERAGE_TIME_WEIGHT:
        yield f"A layer takes {slowest * heaviest // AVERAGE_TIME_WEIGHT} ns on a device; give at most {TIME_NS_MAX}."
    for pool in problem.pools:
        if not _is_between(pool.room_bytes, 0, SIZE_BYTES_MAX):
            yield f"The pool {pool.pool_id!r} has {pool.room_bytes} bytes; give 0 to {SIZE_BYTES_MAX}."
    yield from _about_links(problem, ids)
    yield from _about_model(problem)
    yield from _about_request(problem, ids)


def _about_links(problem: CostProblem, ids: set[str]) -> Iterator[str]:
    links = problem.links
    costs = [("host", links.host), ("zone", links.zone), ("cluster", links.cluster)]
    sound: set[LinkCost] = set()
    measured = links.measured
    if isinstance(measured, NodeLinks) and measured.is_within(ids, TIME_NS_MAX):
        measured = ()  # All at once; of what is wrong, each is named below.
    for link in measured:
        is_known = link.source_device_id in ids and link.target_device_id in ids
        if is_known and (link.cost in sound or _is_cost(link.cost)):
            sound.add(link.cost)  # Devices of two nodes share it.
            continue
        name = f"{link.source_device_id} to {link.target_device_id}"
        costs.append((name, link.cost))
        if not is_known:
            unknown = min({link.source_device_id, link.target_device_id} - ids)
            yield f"The measured link {name} names {unknown!r}, which is no device of the problem."
    for name, cost in costs:
        if not _is_cost(cost):
            yield f"The link {name} costs {cost.forward_ns} and {cost.return_ns} ns; give 0 to {TIME_NS_MAX}."


def _about_model(problem: CostProblem) -> Iterator[str]:
    model = problem.model
    seen: set[tuple[int, int, int]] = set()
    for number, layer in enumerate(model.layers):
        figures = (layer.weight_bytes, layer.cache_bytes, layer.time_weight)
        if figures in seen:
            continue
        seen.add(figures)
        is_sized = _is_between(layer.weight_bytes, 0, SIZE_BYTES_MAX) and layer.size_bytes >= 1
        if not is_sized or not _is_between(layer.cache_bytes, 0, SIZE_BYTES_MAX):
            yield (
                f"Layer {number} has {layer.weight_bytes} bytes of weights and {layer.cache_bytes} of cache; "
                f"give 1 to {SIZE_BYTES_MAX}."
            )
        if not _is_between(layer.time_weight, 0, 10**9):
            yield f"Layer {number} has the time weight {layer.time_weight}; give 0 to {10**9}."
    for name, value in (
        ("embedding", model.embedding_bytes),
        ("head", model.head_bytes),
        ("stage", model.stage_bytes),
    ):
        if not _is_between(value, 0, SIZE_BYTES_MAX):
            yield f"The {name} has {value} bytes; give 0 to {SIZE_BYTES_MAX}."


def _about_request(problem: CostProblem, ids: set[str]) -> Iterator[str]:
    if not _is_between(problem.min_stages, 0, DEVICES_MAX):
        yield f"At least {problem.min_stages} stages were asked for; give 0 to {DEVICES_MAX}."
    if problem.concurrency < 1 or not 1 <= problem.micro_batches <= problem.concurrency:
        yield (
            f"{problem.concurrency} sequences cannot go in {problem.micro_batches} micro-batches; "
            "give at least one sequence to each."
        )
    for rule in problem.rules:
        named = (
            rule.device_ids if isinstance(rule, AtMost) else [one for group in rule.groups for one in group]
        )
        unknown = set(named) - ids
        if unknown:
            yield f"{rule.reason} names {min(unknown)!r}, which is no device of the problem."


def _is_cost(cost: LinkCost) -> bool:
    return _is_between(cost.forward_ns, 0, TIME_NS_MAX) and _is_between(cost.return_ns, 0, TIME_NS_MAX)


def _is_between(value: int, low: int, high: int) -> bool:
    """Also says no to NaN and to what is no number at all."""
    return type(value) is int and low <= value <= high
