"""What the state tells of a healthy instance that might be moved, and the event that moves it. Pure."""

import math
from collections.abc import Mapping, Sequence

import msgspec

from exo.master.migration import Offer, load_s_of
from exo.master.placement.evaluate import broken_wishes
from exo.master.placement.figures import heat_of, used_by_others_percent
from exo.master.placement.filters import nodes_to_avoid
from exo.master.placement.ladder.cost_model import is_usable
from exo.master.placement.problem import free_bytes_by_pool
from exo.master.placement.words import milliseconds
from exo.master.recovery import trouble_of
from exo.master.recovery_ladder import Surroundings, is_legal, surroundings, where_to
from exo.master.replacement_job import Kept
from exo.shared.serving import instance_status
from exo.shared.types.events import InstanceMoved
from exo.shared.types.ids import DeviceId, InstanceId, NodeId
from exo.shared.types.instances import Instance, PlacementRequest, Plan, Prediction, StagePlan
from exo.shared.types.state import State

QUIET_BELOW = 0.1
"""A share of its devices' time that an instance that nobody uses seems to take: other programs' odds and ends."""
_PACE_STEPS_PER_DOUBLING = 4
_ROOM_STEP = 1 / 8


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What predictions depend on, in coarse steps: while it is the same, so are the predictions."""

    surroundings: Surroundings
    devices: frozenset[tuple[DeviceId, float | None, float, float | None]]
    """Load by others, share that heat leaves, degrees to the limit."""
    paces: frozenset[tuple[str, int]]
    """How fast stages were measured to be."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What nothing better was found on."""

    circumstances: Circumstances
    free_bytes: dict[str, int]
    """Of each memory pool."""


def seen_on(state: State) -> Seen:
    """Return what a look at a state rests on."""
    return Seen(circumstances=circumstances(state), free_bytes=free_bytes_by_pool(state))


def is_worth_another_look(before: Seen, now: Seen, layer_bytes: int) -> bool:
    """Say whether there may be something better now, where there was nothing before.

    Free memory never stands still. Less of it offers nothing better. More is worth a look where it holds another layer,
    and is an eighth more than it was: much memory that is free already leaves little to be had from a bit more.

    Args:
        before: On which nothing was found.
        now: As it is.
        layer_bytes: Of the model's largest layer.
    """
    if before.circumstances != now.circumstances:
        return True
    return any(
        free - had > max(layer_bytes, had * _ROOM_STEP)
        for pool, free in now.free_bytes.items()
        if (had := before.free_bytes.get(pool, 0)) < free
    )


def circumstances(state: State) -> Circumstances:
    """Return what predictions depend on now."""
    placed = {
        device_id
        for instance in state.instances.values()
        for stage in instance.plan.stages
        for device_id in stage.device_ids
    }
    devices = frozenset(
        (
            device_id,
            None if device_id in placed else used_by_others_percent(reading.compute_utilization_percent),
            *heat_of(reading),
        )
        for live in state.live.values()
        for device_id, reading in live.devices.items()
    )
    paces = frozenset(
        (key, round(_PACE_STEPS_PER_DOUBLING * math.log2(pace.bandwidth_bytes_per_s)))
        for live in state.live.values()
        for key, pace in live.paces.items()
        if is_usable(pace.bandwidth_bytes_per_s)
    )
    return Circumstances(surroundings=surroundings(state), devices=devices, paces=paces)


def can_be_moved(state: State, instance_id: InstanceId, generation: int) -> Instance | None:
    """Return an instance that serves, of this generation, and nothing else is under way with; else None."""
    instance = state.instances.get(instance_id)
    if instance is None or instance.generation != generation:
        return None
    is_serving = instance_status(state, instance)[0] == "ready"
    return instance if is_serving and trouble_of(state, instance) is None else None


def is_loading(state: State) -> bool:
    """Say whether any instance is being loaded: loads and free memory are not what they will be."""
    # What waits for a node or is stranded loads nothing, whatever phase its stages were left in.
    return any(instance_status(state, one)[0] in ("pending", "loading") for one in state.instances.values())


def busy_share(state: State, instance: Instance) -> float:
    """Return how much of the time the instance works, 0 to 1, as far as its devices' load tells.

    Stages of one request work in turn, so that their shares add up. What others used of a device when its stages had
    nothing to do is left aside, where that is known.
    """
    total = 0.0
    for stage in instance.plan.stages:
        live = state.live.get(stage.node_id)
        if live is None:
            continue
        for device_id in stage.device_ids:
            reading = live.devices.get(device_id)
            told = reading.compute_utilization_percent if reading is not None else None
            others = [
                pace.used_by_others_percent or 0.0
                for pace in live.paces.values()
                if pace.device_id == device_id
            ]
            total += max(0.0, (told or 0.0) - max(others, default=0.0)) / 100
    return min(1.0, total)


def tokens_per_s(state: State, instance: Instance, share: float) -> float:
    """Return what an instance makes in a second while it works this share of the time."""
    told = instance.plan.prediction
    ms_per_token = told.ms_per_token if told is not None else None
    for live in state.live.values():
        pace = live.instance_paces.get(instance.instance_id)
        if pace is not None and pace.generation == instance.generation:
            ms_per_token = pace.ms_per_token
    return 0.0 if share < QUIET_BELOW or not ms_per_token else share * 1000 / ms_per_token


def held_back(state: State, instance: Instance, below: float) -> dict[DeviceId, str]:
    """Return the instance's devices that heat keeps from this much of their work, each with its story for people."""
    found: dict[DeviceId, str] = {}
    for stage in instance.plan.stages:
        live, node = state.live.get(stage.node_id), state.nodes.get(stage.node_id)
        for device_id in stage.device_ids:
            reading = live.devices.get(device_id) if live is not None else None
            if reading is None or node is None:
                continue
            name = f"{_alias(state, stage.node_id, device_id)} of {node.identity.name}"
            share = reading.thermal.sustained_fraction if reading.thermal is not None else None
            is_held_by_driver = bool({"thermal", "power_brake"} & set(reading.throttle_reasons or ()))
            if share is not None and share < below:
                found[device_id] = f"{name} is held back to {share:.0%} by heat"
            elif share is None and (is_held_by_driver or reading.is_thermal_throttling):
                found[device_id] = f"{name} is held back by its driver"
    return found


def since_s(
    before: Mapping[DeviceId, float], found: Mapping[DeviceId, str], now_s: float
) -> dict[DeviceId, float]:
    """Return since when on end each device has been among those found."""
    return {device_id: before.get(device_id, now_s) for device_id in found}


def offer_of(
    kept: Kept, instance: Instance, seen_load_s: float | None, owed: str | None = None
) -> Offer | None:
    """Return what a plan has to offer; None where it is the present one, or nothing can be compared.

    Args:
        kept: The plan, and how fast the present one is.
        instance: As it is.
        seen_load_s: How long its last load took; None: nobody saw.
        owed: See `what_is_owed`.
    """
    told, present = kept.plan.prediction, kept.present
    if _is_same(kept.plan, instance.plan):
        return None
    is_calibrated = told is not None and present is not None and told.is_calibrated and present.is_calibrated
    present_ms = _time_ms(present) if is_calibrated else kept.plain_present_ms
    next_ms = _time_ms(told) if is_calibrated else kept.plain_ms
    if told is None or present is None or present_ms is None or next_ms is None:
        if owed is None:
            return None
        present_ms = next_ms = 0.0  # They cannot be compared, and need not be.
    return Offer(
        present_ms=present_ms,
        next_ms=next_ms,
        is_calibrated=is_calibrated,
        load_s=load_s_of(kept.plan, instance, seen_load_s),
        owed=owed,
    )


def what_is_owed(freed: State, instance: Instance, request: PlacementRequest) -> str | None:
    """Say what the present place does not keep of what was asked for; None where it keeps all.

    When something was lost there may have been nothing that kept it: fewer nodes, another split.

    Args:
        freed: The state without the instance.
        instance: As it is.
        request: What was asked for, without what is not there any more.
    """
    stages = instance.plan.stages
    zones = {node_id: node.identity.zone for node_id, node in freed.nodes.items()}
    avoided = nodes_to_avoid(freed, request)
    company = (avoided[stage.node_id] for stage in stages if stage.node_id in avoided)
    return "; ".join(dict.fromkeys((*broken_wishes(stages, request, zones), *company))) or None


def decide_migrate(
    state: State,
    instance: Instance,
    request: PlacementRequest,
    plan: Plan,
    offer: Offer,
    *,
    causes: Sequence[str] = (),
    basis: bytes = b"",
) -> InstanceMoved | None:
    """Return the move of a healthy instance, or None where the newest state does not allow it any more.

    Args:
        state: The newest state.
        instance: As it was when the plan was made.
        request: What the plan was made for.
        plan: Where it goes.
        offer: Why.
        causes: What is the matter with the present place, for people.
        basis: What the plan was solved on.
    """
    present = can_be_moved(state, instance.instance_id, instance.generation)
    # What began to load while the plan was made takes disks and links that were thought to be free.
    if present is None or is_loading(state) or not is_legal(state, present, request, plan):
        return None
    why = list(causes)
    if offer.owed is not None:
        why.append(f"what was asked for can be had again ({offer.owed})")
    if offer.gain > 0:
        why.append(
            f"each token is predicted to take {milliseconds(offer.next_ms)} instead of "
            f"{milliseconds(offer.present_ms)} elsewhere"
        )
    return InstanceMoved(
        instance_id=present.instance_id,
        generation=present.generation + 1,
        plan=plan,
        basis=basis,
        reason=f"{'; '.join(why)}; it now runs{where_to(state, present, plan)}",
    )


def _time_ms(prediction: Prediction | None) -> float | None:
    return prediction.ms_per_token if prediction is not None else None


def _is_same(plan: Plan, other: Plan) -> bool:
    def where(stage: StagePlan) -> tuple[tuple[DeviceId, ...], int, int]:
        return stage.device_ids, stage.start_layer, stage.end_layer

    return [where(one) for one in plan.stages] == [where(one) for one in other.stages]


def _alias(state: State, node_id: NodeId, device_id: DeviceId) -> str:
    devices = state.nodes[node_id].identity.devices
    return next((one.local_alias for one in devices if one.device_id == device_id), device_id)
