"""From one cluster to another: out of one that is over, into a senior one, into one of its own where there is none."""

from collections.abc import Callable

import anyio
from loguru import logger

from exo.cluster.facts import ClusterFacts
from exo.cluster.kernel import Kernel
from exo.cluster.writer import RunBlocking, Writer
from exo.shared.errors import NoMasterError
from exo.shared.types.events import ClusterDissolved


class Moving:
    """Whatever the reason: the kernel forgets its cluster first, then the disk does.

    Args:
        kernel: The node.
        writer: Forgets the log.
        clock: Monotonic seconds.
        is_voteless: The node has lost its log, and with it its vote.
        vote_regained: Called when it was let in anew. Waits for the disk.
        run_blocking: Calls it.
    """

    def __init__(
        self,
        kernel: Kernel,
        writer: Writer,
        clock: Callable[[], float],
        *,
        is_voteless: bool,
        vote_regained: Callable[[], None],
        run_blocking: RunBlocking,
    ) -> None:
        self._kernel = kernel
        self._situation = kernel.situation
        self._writer = writer
        self._clock = clock
        self._is_voteless = is_voteless
        self._vote_regained = vote_regained
        self._run_blocking = run_blocking
        self._is_yielding = False
        self._homeless_since_s: float | None = None

    # --- into another cluster -----------------------------------------------------------------------------------

    async def give_up(self, into: ClusterFacts) -> bool:
        """Be part of no cluster any more, to join another one. Everybody who was part of this one comes along.

        Returns:
            Whether this node is free to join; False: others would not agree in time.
        """
        self._is_yielding = True
        try:
            if self._situation.standing == "leader" and not await self._dissolve(into):
                return False
            # Without a pause since the caller found nothing to lose, or behind the last entry of this cluster's log.
            await self._forget_cluster()
            return True
        finally:
            self._is_yielding = False

    async def _dissolve(self, into: ClusterFacts) -> bool:
        kernel, situation, options = self._kernel, self._situation, self._kernel.options
        is_alone = situation.core.voters.members == frozenset((situation.node_id,))
        if is_alone and not kernel.hosting.sessions:
            return True
        assert into.cluster_id is not None and into.master_address is not None
        farewell = ClusterDissolved(into_cluster_id=into.cluster_id, address=into.master_address)
        ticket, future = kernel.dispatch.submit([farewell], f"yield-{situation.boot_id}")
        try:
            with anyio.fail_after(options.answer_timeout_s):
                await future
        except (TimeoutError, NoMasterError):
            return False
        finally:
            kernel.proposals.withdraw(ticket)
        with anyio.move_on_after(options.farewell_s):
            # An answer announces nothing: it has to be looked for.
            while not kernel.hosting.have_all(situation.state.index):  # noqa: ASYNC110
                await anyio.sleep(options.tick_s / 5)
        return True

    # --- out of one that is over, into one of its own -----------------------------------------------------------

    async def run(self) -> None:
        """Look at every change whether to leave or to form a cluster, until cancelled."""
        while True:
            if self._situation.farewell is not None and not self._is_yielding:
                was_removed = self._situation.farewell == "removed"
                await self._forget_cluster()
                if was_removed:
                    await self._begin_anew()
                    continue
            if self._situation.core.may_vote:
                await self._note_vote()
            wait_s = self._home_due_s()
            if wait_s is not None and wait_s <= 0.001:
                await self._make_home()
                continue
            with anyio.move_on_after(wait_s):
                await self._kernel.board.changed.wait()

    async def _forget_cluster(self) -> None:
        self._kernel.forsake()
        await self._writer.reset()

    async def _note_vote(self) -> None:
        if self._is_voteless:
            self._is_voteless = False
            await self._run_blocking(self._vote_regained)

    async def _begin_anew(self) -> None:
        """Form a cluster after this node was removed: nobody counts on it, and there is nobody to wait for."""
        await self._note_vote()
        situation = self._situation
        if (
            situation.cluster_id is None
            and not situation.core.voters.voters
            and situation.standing == "orphan"
        ):
            self._kernel.found()

    def _home_due_s(self) -> float | None:
        """Return how long to look for a cluster before forming one; None: there is one, or it is not allowed."""
        if not self._situation.is_homeless or self._is_yielding or self._is_voteless:
            self._homeless_since_s = None
            return None
        now_s = self._clock()
        if self._homeless_since_s is None:
            self._homeless_since_s = now_s
        return self._homeless_since_s + self._kernel.options.homeless_s - now_s

    async def _make_home(self) -> None:
        if self._situation.is_spare:
            await self._forget_cluster()
        else:
            logger.info("no cluster took this node in: it forms one of its own")
            self._kernel.found()
