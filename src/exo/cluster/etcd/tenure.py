"""Leading: standing for election when there is no master, holding the lease, committing, and stepping down in time."""

import random
from collections.abc import Callable

import anyio
from loguru import logger

from exo.cluster.etcd.errors import DeposedError, EtcdError, EtcdLeaseGoneError
from exo.cluster.etcd.member import Member
from exo.cluster.etcd.reading import Reader
from exo.cluster.etcd.records import MasterRecord
from exo.cluster.etcd.seat import Seat
from exo.cluster.etcd.store import EtcdStore, MasterSeen
from exo.shared.types.events import LogEntry

CAMPAIGN, LEASE, COMMIT, SNAPSHOT = (
    "standing for election",
    "holding the lease",
    "committing",
    "saving a snapshot",
)
"""What can be in trouble."""
REVOKE_TIMEOUT_S = 1.0


class Tenure:
    """Seeks and holds the right to lead, one term after the other.

    Args:
        member: The node.
        store: What is in etcd.
        reader: Keeps the node level with it.
        draw: Returns a random number from 0 to 1.
    """

    def __init__(
        self, member: Member, store: EtcdStore, reader: Reader, *, draw: Callable[[], float] = random.random
    ) -> None:
        self._member = member
        self._store = store
        self._reader = reader
        self._draw = draw

    async def run(self) -> None:
        """Lead whenever there is no other master, until cancelled.

        Raises:
            LogCorruptError: What is in etcd cannot be read.
        """
        while True:
            await self._until_vacant()
            try:
                won = await self._campaign()
            except EtcdError as error:
                self._member.troubled(CAMPAIGN, error.message)
                await anyio.sleep(self._member.options.retry_max_s)
                continue
            self._member.troubled(CAMPAIGN, None)
            if won is not None:
                await self._lead(*won)

    async def _until_vacant(self) -> None:
        """Return when no one leads, after a random while in which someone else may have begun to."""
        member = self._member
        while True:
            master = member.master
            if master is not None or not member.is_in_touch or member.is_leaving:
                member.gave_up(CAMPAIGN)
                if master is not None and master.record.boot_id == member.boot_id and member.is_in_touch:
                    # Of an election of which this node never heard that it had won, or of a term that it gave up.
                    await self._revoke(master.lease_id)
                if member.master is master:
                    with anyio.move_on_after(member.options.retry_max_s):
                        await member.board.changed.wait()
                continue
            wait_s = max(
                member.not_before_s - member.clock(), self._draw() * member.options.campaign_spread_s, 0.0
            )
            await anyio.sleep(wait_s)
            if member.master is None and member.is_in_touch and not member.is_leaving:
                return

    async def _campaign(self) -> tuple[Seat, float] | None:
        """Return the term that was won and the seconds that its lease lasts, or None: somebody else leads."""
        member = self._member
        asked_s = member.clock()
        lease = await self._store.client.grant(member.options.lease_s)
        seat: Seat | None = None
        try:
            tail = await self._reader.catch_up()
            if tail.master is not None:
                return None
            record = MasterRecord(
                node_id=member.node_id,
                boot_id=member.boot_id,
                term=max(tail.head.term, member.state.term) + 1,
                address=member.identity.cluster_address,
                name=member.identity.name,
            )
            hold = await self._store.campaign(record, lease.ID, tail)
            if hold is None:
                return None
            # As if the watch had said it, which may come later, or has come already.
            seen = MasterSeen(record=record, create_revision=hold.create_revision, lease_id=lease.ID)
            member.master_seen(seen, hold.create_revision)
            if member.master != seen:
                return None
            seat = member.lead(hold, self._safe_until_s(asked_s, lease.TTL))
            return seat, float(lease.TTL)
        finally:
            if seat is None:
                await self._revoke(lease.ID)

    def _safe_until_s(self, asked_s: float, ttl_s: float) -> float:
        """Until then a lease that was asked for at a time cannot have ended: etcd counts from when it heard."""
        return asked_s + ttl_s * (1 - self._member.options.lease_margin)

    async def _lead(self, seat: Seat, ttl_s: float) -> None:
        member = self._member
        logger.info("leading in term {} from index {} on", seat.term, member.state.index)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._hold_lease, seat, ttl_s)
                tasks.start_soon(self._commit_all, seat)
                tasks.start_soon(self._give_grace)
                tasks.start_soon(self._save_snapshots, seat)
                while member.seat is seat:
                    await member.board.changed.wait()
                tasks.cancel_scope.cancel()
        finally:
            member.step_down("the node is stopping")
            member.gave_up(LEASE, COMMIT, SNAPSHOT)
            await self._revoke(seat.hold.lease_id)

    async def _revoke(self, lease_id: int) -> None:
        """Let others lead at once, as well as that is possible in a moment; else the lease ends by itself."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(REVOKE_TIMEOUT_S):
            try:
                await self._store.client.revoke(lease_id)
            except EtcdLeaseGoneError:
                return
            except EtcdError as error:
                logger.debug("the lease ends by itself: {}", error.message)

    # --- while leading ------------------------------------------------------------------------------------------

    async def _hold_lease(self, seat: Seat, ttl_s: float) -> None:
        member, pause_s = self._member, ttl_s / 3
        while True:
            await anyio.sleep(max(0.0, min(pause_s, seat.held_until_s - member.clock())))
            asked_s = member.clock()
            if asked_s >= seat.held_until_s:
                member.step_down("it could not renew its lease at etcd in time")
                return
            try:
                with anyio.move_on_after(seat.held_until_s - asked_s):
                    left_s = await self._store.client.keep_alive(seat.hold.lease_id)
                    if not left_s:
                        member.step_down("its lease at etcd has ended")
                        return
                    seat.held_until_s = self._safe_until_s(asked_s, left_s)
                    member.troubled(LEASE, None)
                    pause_s = left_s / 3
            except EtcdError as error:
                member.troubled(LEASE, error.message)
                pause_s = member.options.retry_s

    async def _commit_all(self, seat: Seat) -> None:
        while True:
            entries = seat.take_batch()
            if not entries:
                await seat.work.wait()
            elif await self._commit(seat, entries):
                self._member.fold(entries)
            else:
                return

    async def _commit(self, seat: Seat, entries: tuple[LogEntry, ...]) -> bool:
        """Say whether they are committed; not: this node leads no longer."""
        member = self._member
        pause_s = member.options.retry_s
        while True:
            try:
                seat.hold = await self._store.commit(seat.hold, entries)
                member.troubled(COMMIT, None)
                return True
            except DeposedError as error:
                member.step_down(error.message)
                return False
            except EtcdError as error:
                # The same again, for as long as the lease holds: if the first attempt succeeded, that is found out.
                member.troubled(COMMIT, error.message)
            await anyio.sleep(pause_s)
            pause_s = min(member.options.retry_max_s, 2 * pause_s)

    async def _give_grace(self) -> None:
        await anyio.sleep(self._member.options.rejoin_grace_s)
        self._member.grace_is_over()

    async def _save_snapshots(self, seat: Seat) -> None:
        member, options = self._member, self._member.options
        while True:
            state = member.state
            if state.index - self._reader.snapshot_index < options.snapshot_every:
                await member.board.changed.wait()
                continue
            try:
                manifest = await self._store.save_snapshot(
                    seat.hold, state, keep_after_index=max(0, state.index - options.recent_entries)
                )
                self._reader.snapshot_index = manifest.index
                member.troubled(SNAPSHOT, None)
                logger.debug("snapshot at {}: {} bytes", manifest.index, manifest.size_bytes)
            except DeposedError as error:
                member.step_down(error.message)
                return
            except EtcdError as error:
                member.troubled(SNAPSHOT, error.message)
                await anyio.sleep(options.retry_max_s)
