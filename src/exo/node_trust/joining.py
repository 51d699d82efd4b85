"""Asking another cluster to take this node in, with the token that `exo join` left, or until somebody approves it.

Nothing is asked that `exo join` did not want: a node that went wherever it is let in would be anybody's.
"""

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import anyio
import anyio.to_thread
from loguru import logger

from exo.api.access_join import (
    JoinOutcome,
    PendingJoin,
    read_pending_join,
    reason_not_to_join,
    remove_pending_join,
    write_join_outcome,
)
from exo.cluster.coordinator import Coordinator
from exo.cluster.discovery.introduced import IntroducedPeers
from exo.cluster.errors import DialError
from exo.cluster.trust.enrolment_client import EnrolProgress, enrol
from exo.cluster.trust.errors import EnrolmentError, TokenError, WrongAuthorityError
from exo.cluster.trust.key_store import KeyStore
from exo.cluster.trust.messages import EnrolRequest
from exo.cluster.trust.token import PlainToken, parse_token
from exo.node_trust.certificate import OwnCertificate
from exo.shared.errors import ConfigurationError, ExoError
from exo.shared.types.ids import NodeId
from exo.shared.types.nodes import HostPort

RETRY_S = 5.0
_UNDECIDED = ("failed", "malformed", "bad_certificate")
"""The node that was asked could not decide: another one can, or this one later."""


class Joining:
    """See the module.

    Args:
        home: The data directory.
        node_id: This node.
        store: Its keys.
        own: Its certificate.
        introduced: Told where the cluster is that takes this node in.
        is_local: Says of a host whether it is this one.
    """

    def __init__(
        self,
        home: Path,
        node_id: NodeId,
        store: KeyStore,
        own: OwnCertificate,
        introduced: IntroducedPeers,
        is_local: Callable[[str], bool],
    ) -> None:
        self._home = home
        self._node_id = node_id
        self._store = store
        self._own = own
        self._introduced = introduced
        self._is_local = is_local
        self._wanted = anyio.Event()
        self._told: set[str] = set()

    def wanted(self) -> None:
        """A token waits in the data directory: use it."""
        self._wanted.set()

    async def run(self, coordinator: Coordinator, namespace: str, name: str) -> None:
        """Do each time what was left for this node, until cancelled."""
        while True:
            self._wanted = anyio.Event()
            pending = await self._read()
            is_over = pending is not None and await self._try(coordinator, pending, namespace, name)
            if is_over:
                await anyio.to_thread.run_sync(self._remove, pending)
                self._told.clear()
                pending = None
            with anyio.move_on_after(RETRY_S if pending is not None else None):
                await self._wanted.wait()
                self._told.clear()

    def _remove(self, pending: PendingJoin | None) -> None:
        """Forget what was left, unless something else was left meanwhile."""
        try:
            is_other = read_pending_join(self._home) != pending
        except ConfigurationError:
            is_other = True
        if not is_other:
            remove_pending_join(self._home)

    async def _try(self, coordinator: Coordinator, pending: PendingJoin, namespace: str, name: str) -> bool:
        """Join, or give up as soon as something else is left instead; say whether what was left is of no more use."""
        is_over = False
        async with anyio.create_task_group() as tasks:

            async def until_wanted() -> None:
                await self._wanted.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_wanted)
            is_over = await self._join(coordinator, pending, namespace, name)
            tasks.cancel_scope.cancel()
        return is_over

    async def _read(self) -> PendingJoin | None:
        try:
            return await anyio.to_thread.run_sync(read_pending_join, self._home)
        except ConfigurationError as error:
            await self._tell(error.message)
            return None

    async def _join(self, coordinator: Coordinator, pending: PendingJoin, namespace: str, name: str) -> bool:
        """Ask at every address that may be of the cluster; say whether what was left is of no more use."""
        try:
            token = None if pending.token is None else parse_token(pending.token)
            addresses = self._addresses(coordinator, pending)
        except (TokenError, ValueError) as error:
            await self._tell(f"the join token that was left for this node cannot be used: {error}")
            return True
        reason = _reason_not_to(coordinator, token)
        if reason is not None:
            await self._tell(reason)
            return True
        if not addresses:
            await self._tell(
                "no node of the cluster is seen; name one: exo join --address HOST:PORT", is_waiting=True
            )
        if token is None and len(addresses) > 1 and not self._are_of_one_cluster(coordinator, addresses):
            seen = ", ".join(map(str, addresses))
            await self._tell(
                f"several clusters are seen ({seen}); name a node of the right one: exo join --address HOST:PORT"
            )
            return True
        request = EnrolRequest(
            node_id=self._node_id,
            name=name,
            platform=f"{platform.system().lower()}-{platform.machine().lower()}",
            exo_version=version("exo"),
            csr=await anyio.to_thread.run_sync(self._store.create_request, self._node_id),
            namespace=namespace,
        )
        for address in addresses:
            is_named = pending.address is not None
            if await self._ask(coordinator, address, request, token, is_named=is_named):
                return True
        return False

    async def _ask(
        self,
        coordinator: Coordinator,
        address: HostPort,
        request: EnrolRequest,
        token: PlainToken | None,
        *,
        is_named: bool,
    ) -> bool:
        """Ask one node of the cluster; say whether there is a decision."""
        try:
            known = None if token is not None else self._store.known_authority(address)
            given = await enrol(
                address,
                request=request,
                token=token,
                known_authority=known,
                on_progress=lambda progress: self._progressed(progress, address, has_token=token is not None),
            )
            # Somebody may have taken days to approve it; a token is answered at once.
            reason = _reason_not_to(coordinator, token) if token is None else None
            if reason is not None:
                await self._tell(reason)
                return True
            with anyio.CancelScope(shield=True):
                await self._own.keep(given.certificate_pem, given.authority_pem)
        except WrongAuthorityError as error:
            # Of several nodes in the neighbourhood one may be of the right cluster.
            await self._tell(f"joining through {address} failed: {error.message}", is_waiting=not is_named)
            return is_named
        except EnrolmentError as error:
            is_over = error.code not in _UNDECIDED
            await self._tell(f"joining through {address} failed: {error.message}", is_waiting=not is_over)
            return is_over
        except (DialError, ExoError) as error:
            await self._tell(f"joining through {address} failed: {error.message}", is_waiting=True)
            return False
        logger.success("this node may join the cluster {} now", given.cluster_id)
        await self._note(None)
        self._introduced.introduce(address)
        return True

    def _addresses(self, coordinator: Coordinator, pending: PendingJoin) -> list[HostPort]:
        if pending.address is not None:
            return [HostPort.parse(pending.address)]
        seen = (
            peer.address for peer in coordinator.peers_seen if peer.status in ("other_secret", "unreachable")
        )
        return [
            address
            for address in dict.fromkeys(seen)
            if address is not None and not self._is_local(address.host)
        ]

    @staticmethod
    def _are_of_one_cluster(coordinator: Coordinator, addresses: list[HostPort]) -> bool:
        ids = {peer.cluster_id for peer in coordinator.peers_seen if peer.address in addresses}
        return len(ids) == 1 and None not in ids

    def _progressed(self, progress: EnrolProgress, address: HostPort, *, has_token: bool) -> None:
        if progress.stage == "authority" and not has_token:
            # On first use it is believed, and remembered, so that another one in its place is noticed.
            self._store.remember_authority(address, progress.authority_hash)
        if progress.text in self._told:
            return
        self._told.add(progress.text)
        logger.info("{}", progress.text)
        if progress.stage != "authority":
            text = f"joining through {address}: {progress.text}"
            _write_outcome(self._home, JoinOutcome(text=text, is_waiting=True))

    async def _tell(self, text: str, *, is_waiting: bool = False) -> None:
        """Warn once of what may come again every few seconds."""
        if text not in self._told:
            self._told.add(text)
            logger.warning("{}", text)
            await self._note(JoinOutcome(text=text, is_waiting=is_waiting))

    async def _note(self, outcome: JoinOutcome | None) -> None:
        await anyio.to_thread.run_sync(_write_outcome, self._home, outcome)


def _reason_not_to(coordinator: Coordinator, token: PlainToken | None) -> str | None:
    wanted = None if token is None else token.authority_hash
    has_master = coordinator.leadership.master_node_id is not None
    return reason_not_to_join(coordinator.state, wanted, has_master=has_master)


def _write_outcome(home: Path, outcome: JoinOutcome | None) -> None:
    try:
        write_join_outcome(home, outcome)
    except OSError as error:
        logger.warning("cannot note how joining goes: {}", error.strerror or error)
