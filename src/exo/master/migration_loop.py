"""The thin loop that looks whether healthy instances should go on elsewhere, and moves one when it pays."""

import math

import anyio
import anyio.lowlevel
import msgspec
from loguru import logger

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
    Seen,
    busy_share,
    can_be_moved,
    decide_migrate,
    held_back,
    is_loading,
    is_worth_another_look,
    offer_of,
    seen_on,
    since_s,
    tokens_per_s,
    what_is_owed,
)
from exo.master.move_desk import MoveDesk
from exo.master.recovery_ladder import attempts, obstacle, without
from exo.master.replacement_job import Kept
from exo.master.solver import Placement
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
    seen: Seen | None = None
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
        desk: See there.
        habits: When an instance is moved.
    """

    def __init__(self, desk: MoveDesk, habits: Habits) -> None:
        self._desk = desk
        self._habits = habits
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
                    with self._desk.enduring(instance_id, "is not looked at now", level="DEBUG"):
                        await self._look(instance_id)

    async def _watch(self) -> None:
        """Note which instances there are and how long they load; all of it is forgotten when another node leads."""
        index = -1
        async for state in self._desk.coordinator.changes():
            if not self._desk.is_leading:
                self._known.clear()
                index = -1
            elif state.index != index:
                index = state.index
                self._known = {
                    instance_id: _watched(self._known.get(instance_id), instance, self._desk.clock())
                    for instance_id, instance in state.instances.items()
                }

    async def _look(self, instance_id: InstanceId) -> None:
        """Take one look at an instance, and move it where that is called for."""
        state = self._desk.state
        known, instance = self._known.get(instance_id), state.instances.get(instance_id)
        if known is None or instance is None or not self._desk.is_leading:
            return
        known = _used(known, state, instance, self._desk.clock())
        hot = held_back(state, instance, self._habits.held_back_below)
        known = msgspec.structs.replace(
            known, held_back_since_s=since_s(known.held_back_since_s, hot, self._desk.clock())
        )
        self._known[instance_id] = known
        if is_loading(state) or can_be_moved(state, instance_id, instance.generation) is None:
            self._keep_record(instance_id, msgspec.structs.replace(known.record, pays_since_s=None), None)
            return
        now = seen_on(state)
        layer_bytes = max(instance.model.layer_bytes, default=0)
        if known.seen is not None and not is_worth_another_look(known.seen, now, layer_bytes):
            return
        found = await self._find(state, instance)
        now_s = self._desk.clock()
        life = Life(
            age_s=now_s - known.first_s,
            tokens_per_s=known.tokens_per_s,
            is_quiet=busy_share(self._desk.state, instance) < QUIET_BELOW,
        )
        step: Step
        record, step = decide_migration(
            known.record, found.offer if found else None, life, now_s, self._habits
        )
        # An offer that does not pay yet may pay as the instance lives on; too small a gain does not grow by itself.
        is_nothing = found is None or not is_worth_a_look(found.offer, self._habits)
        self._keep_record(instance_id, record, now if is_nothing else None)
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
        answer = await self._desk.solver.place(freed, request)
        if not isinstance(answer, Placement):
            return None
        kept = await self._desk.keep(freed, instance, request, answer)
        known = self._known.get(instance.instance_id)
        owed = what_is_owed(freed, instance, request)
        offer = offer_of(kept, instance, known.load_s if known is not None else None, owed)
        if offer is None or (owed is None and offer.gain <= 0):
            return None
        return _Found(request=request, basis=answer.basis, kept=kept, offer=offer)

    async def _move(self, instance: Instance, found: _Found, causes: list[str]) -> None:
        # Decided and committed under one lock, so that an instance is never moved twice at a time.
        async with self._desk.newest() as state:
            if state is None:
                return
            event = decide_migrate(
                state,
                instance,
                found.request,
                found.kept.plan,
                found.offer,
                causes=causes,
                basis=found.basis,
            )
            if event is None:
                return
            await self._desk.commit(event, instance)
            logger.info("{}: {}", instance.instance_id, event.reason)
        known = self._known.get(instance.instance_id)
        if known is not None:
            self._keep_record(instance.instance_id, moved(known.record, self._desk.clock()), None)

    def _keep_record(self, instance_id: InstanceId, record: Record, seen: Seen | None) -> None:
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
