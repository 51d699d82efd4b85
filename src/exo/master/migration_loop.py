"""The thin loop that looks whether healthy instances should go on elsewhere, and moves one when it pays."""

import math
from collections.abc import Callable

import anyio
import anyio.lowlevel
import msgspec
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.master.migration import (
    Habits,
    Life,
    Offer,
    Record,
    Step,
    decide_migration,
    is_worth_a_look,
    moved,
)
from exo.master.migration_view import (
    QUIET_BELOW,
    Circumstances,
    busy_share,
    can_be_moved,
    circumstances,
    decide_migrate,
    held_back,
    is_loading,
    offer_of,
    since_s,
    tokens_per_s,
)
from exo.master.recovery_ladder import attempts, obstacle, without
from exo.master.recovery_loop import keep
from exo.master.replacement_job import Kept
from exo.master.solver import Placement, Solver
from exo.shared.errors import NoMasterError
from exo.shared.types.ids import DeviceId, InstanceId
from exo.shared.types.instances import Instance, PlacementRequest
from exo.shared.types.state import State

RATE_MEMORY_S = 600.0
"""Over how long the use of an instance is averaged."""


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """What this master has seen of an instance."""

    first_s: float
    tokens_per_s: float = 0.0
    looked_s: float | None = None
    loading_since_s: float | None = None
    generation: int = 0
    """Whose load is being watched, or was."""
    load_s: float | None = None
    """How long its last load took."""
    record: Record = Record()
    seen: Circumstances | None = None
    """On which there was nothing better; None: there was, or nobody has looked."""
    held_back_since_s: dict[DeviceId, float] = {}


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    """What the solver found for an instance."""

    request: PlacementRequest
    basis: bytes
    kept: Kept
    offer: Offer


class Migrator:
    """Looks at one instance after the other, while this node leads.

    Args:
        coordinator: Where decisions are committed.
        solver: Places models.
        deciding: Held from the look at the state to the commit; shared with what else the master decides.
        habits: When an instance is moved.
        clock: Monotonic seconds, as the event loop sleeps.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        solver: Solver,
        deciding: anyio.Lock,
        *,
        habits: Habits | None = None,
        clock: Callable[[], float] = anyio.current_time,
    ) -> None:
        self._coordinator = coordinator
        self._solver = solver
        self._deciding = deciding
        self._habits = habits or Habits()
        self._clock = clock
        self._known: dict[InstanceId, _Known] = {}

    async def run(self) -> None:
        """Move instances until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            while True:
                await anyio.sleep(self._habits.look_s)
                for instance_id in sorted(self._known):
                    # In a large cluster a look alone takes milliseconds.
                    await anyio.lowlevel.checkpoint()
                    try:
                        await self._look(instance_id)
                    except (NoMasterError, anyio.BrokenWorkerProcess, OSError) as error:
                        logger.debug("{} is not looked at now: {}", instance_id, error)
                    except Exception:  # See `Mover`: a fault of a solver ends no master.
                        logger.exception("{} is not looked at now", instance_id)

    async def _watch(self) -> None:
        """Note which instances there are and how long they load; all of it is forgotten when another node leads."""
        index = -1
        async for state in self._coordinator.changes():
            if not self._coordinator.leadership.is_self:
                self._known.clear()
                index = -1
            elif state.index != index:
                index = state.index
                self._known = {
                    instance_id: _watched(self._known.get(instance_id), instance, self._clock())
                    for instance_id, instance in state.instances.items()
                }

    async def _look(self, instance_id: InstanceId) -> None:
        """Take one look at an instance, and move it where that is called for."""
        state = self._coordinator.state
        known, instance = self._known.get(instance_id), state.instances.get(instance_id)
        if known is None or instance is None or not self._coordinator.leadership.is_self:
            return
        known = _used(known, state, instance, self._clock())
        hot = held_back(state, instance, self._habits.held_back_below)
        known = msgspec.structs.replace(
            known, held_back_since_s=since_s(known.held_back_since_s, hot, self._clock())
        )
        self._known[instance_id] = known
        if is_loading(state) or can_be_moved(state, instance_id, instance.generation) is None:
            self._keep_record(instance_id, msgspec.structs.replace(known.record, pays_since_s=None), None)
            return
        around = circumstances(state)
        if known.seen == around:
            return
        found = await self._find(state, instance)
        now_s = self._clock()
        life = Life(
            age_s=now_s - known.first_s,
            tokens_per_s=known.tokens_per_s,
            is_quiet=busy_share(self._coordinator.state, instance) < QUIET_BELOW,
        )
        step: Step
        record, step = decide_migration(
            known.record, found.offer if found else None, life, now_s, self._habits
        )
        # An offer that does not pay yet may pay as the instance lives on; too small a gain does not grow by itself.
        is_nothing = found is None or not is_worth_a_look(found.offer, self._habits)
        self._keep_record(instance_id, record, around if is_nothing else None)
        if step == "move" and found is not None:
            lasting = [
                hot[device_id]
                for device_id, at_s in known.held_back_since_s.items()
                if now_s - at_s >= self._habits.stands_s
            ]
            await self._move(instance, found, lasting)

    async def _find(self, state: State, instance: Instance) -> _Found | None:
        """Have the solver look for a better place."""
        freed = without(state, instance.instance_id)
        if obstacle(freed, instance) is not None:
            return None
        request = attempts(freed, instance)[0].request
        answer = await self._solver.place(freed, request)
        if not isinstance(answer, Placement):
            return None
        kept = await keep(self._solver, freed, instance, request, answer)
        known = self._known.get(instance.instance_id)
        offer = offer_of(kept, instance, known.load_s if known is not None else None)
        if offer is None or offer.gain <= 0:
            return None
        return _Found(request=request, basis=answer.basis, kept=kept, offer=offer)

    async def _move(self, instance: Instance, found: _Found, causes: list[str]) -> None:
        # Decided and committed under one lock, so that an instance is never moved twice at a time.
        async with self._deciding:
            if not self._coordinator.leadership.is_self:
                return
            event = decide_migrate(
                self._coordinator.state,
                instance,
                found.request,
                found.kept.plan,
                found.offer,
                causes=causes,
                basis=found.basis,
            )
            if event is None:
                return
            await self._coordinator.propose([event], cause_id=instance.created_by)
            logger.info("{}: {}", instance.instance_id, event.reason)
        known = self._known.get(instance.instance_id)
        if known is not None:
            self._keep_record(instance.instance_id, moved(known.record, self._clock()), None)

    def _keep_record(self, instance_id: InstanceId, record: Record, seen: Circumstances | None) -> None:
        known = self._known.get(instance_id)
        if known is not None:
            self._known[instance_id] = msgspec.structs.replace(known, record=record, seen=seen)


def _watched(known: _Known | None, instance: Instance, now_s: float) -> _Known:
    """Return what is known of an instance with its state now."""
    known = known or _Known(first_s=now_s)
    is_ready = instance.status == "ready"
    if instance.status == "pending" and known.generation != instance.generation:
        return msgspec.structs.replace(
            known, generation=instance.generation, loading_since_s=now_s, seen=None
        )
    if is_ready and known.loading_since_s is not None and known.generation == instance.generation:
        return msgspec.structs.replace(known, load_s=now_s - known.loading_since_s, loading_since_s=None)
    return known


def _used(known: _Known, state: State, instance: Instance, now_s: float) -> _Known:
    """Return what is known of an instance with how much it is used now, older use counting less and less."""
    rate = tokens_per_s(state, instance, busy_share(state, instance))
    if known.looked_s is None:
        return msgspec.structs.replace(known, tokens_per_s=rate, looked_s=now_s)
    weight = 1 - math.exp(-(now_s - known.looked_s) / RATE_MEMORY_S)
    average = known.tokens_per_s + weight * (rate - known.tokens_per_s)
    return msgspec.structs.replace(known, tokens_per_s=average, looked_s=now_s)
