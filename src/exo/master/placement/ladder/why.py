"""Why a plan is as it is: what each device left out would cost, and which memory binds. Only made when asked for."""

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from exo.master.placement.ladder.answer import Solution
from exo.master.placement.ladder.problem import CostProblem, Device, Pool
from exo.master.placement.ladder.solve import solve

_FORCED_MAX = 16
"""Devices left out that are each forced in once; of more, the fastest."""


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A device that is not in the plan, and why."""

    device_id: str
    reason: str
    forcing_ns: int | None = None
    """What a round takes longer with this device in it; None where no plan has it, or where that was not tried."""


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that holds the plan back most: so many bytes more save so much of each round."""

    pool_id: str
    more_bytes: int
    saved_ns: int


def left_out(
    problem: CostProblem,
    solution: Solution,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    forced_max: int = _FORCED_MAX,
) -> tuple[LeftOut, ...]:
    """Return the devices that the plan leaves out, by id, with what forcing each in would cost.

    Each price is a solve of its own; the fastest `forced_max` devices are priced.
    """
    used = {stage.device_id for stage in solution.stages}
    absent = [device for device in problem.devices if device.device_id not in used]
    fastest = sorted(absent, key=lambda device: (device.layer_ns, device.device_id))[:forced_max]
    tried = {device.device_id for device in fastest}
    least = problem.model.stage_bytes + min(layer.size_bytes for layer in problem.model.layers)
    rooms = {pool.pool_id: pool.room_bytes for pool in problem.pools}
    found: list[LeftOut] = []
    for device in sorted(absent, key=lambda one: one.device_id):
        if rooms[device.pool_id] < least:
            reason = f"one layer takes {least} bytes on it; it has {rooms[device.pool_id]}"
            found.append(LeftOut(device_id=device.device_id, reason=reason))
        elif device.device_id not in tried or should_stop():
            found.append(LeftOut(device_id=device.device_id, reason="faster devices hold the model"))
        else:
            found.append(_forced(problem, solution, device, should_stop))
    return tuple(found)


def _forced(
    problem: CostProblem, solution: Solution, device: Device, should_stop: Callable[[], bool]
) -> LeftOut:
    devices = tuple(replace(one, is_required=True) if one is device else one for one in problem.devices)
    forced = solve(replace(problem, devices=devices), should_stop=should_stop)
    if not isinstance(forced, Solution):
        return LeftOut(device_id=device.device_id, reason="no plan that uses it was found")
    more_ns = forced.assessment.round_ns - solution.assessment.round_ns
    reason = "the plan is faster without it" if more_ns > 0 else "a plan with it is no faster"
    return LeftOut(device_id=device.device_id, reason=reason, forcing_ns=max(0, more_ns))


def binding(
    problem: CostProblem,
    solution: Solution,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    pools_max: int = _FORCED_MAX,
) -> Binding | None:
    """Return the pool of which room for one layer more saves most, or None where more memory saves nothing.

    Of the plan's pools those of the fastest devices are tried, `pools_max` of them, each by a solve.
    """
    used_devices = {stage.device_id for stage in solution.stages}
    fastest = sorted(
        (one for one in problem.devices if one.device_id in used_devices),
        key=lambda device: (device.layer_ns, device.device_id),
    )
    used = set(list(dict.fromkeys(one.pool_id for one in fastest))[:pools_max])
    layer_bytes = max(layer.size_bytes for layer in problem.model.layers)
    best: Binding | None = None
    for number, pool in enumerate(problem.pools):
        if pool.pool_id not in used or should_stop():
            continue
        spare = pool.room_bytes - solution.assessment.pool_bytes[pool.pool_id]
        if spare >= layer_bytes:
            continue
        more_bytes = layer_bytes - spare
        grown = Pool(pool_id=pool.pool_id, room_bytes=pool.room_bytes + more_bytes)
        pools = (*problem.pools[:number], grown, *problem.pools[number + 1 :])
        found = solve(replace(problem, pools=pools), should_stop=should_stop)
        if not isinstance(found, Solution):
            continue
        saved_ns = solution.assessment.round_ns - found.assessment.round_ns
        if saved_ns > 0 and (best is None or saved_ns > best.saved_ns):
            best = Binding(pool_id=pool.pool_id, more_bytes=more_bytes, saved_ns=saved_ns)
    return best
