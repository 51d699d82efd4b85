"""Carries commands about access out: decides, has certificates signed, commits. The pure part is beside it."""

from collections.abc import Callable, Sequence

import anyio
from loguru import logger

from exo.cluster.coordinator import Coordinator
from exo.master.access import decide_removal, decide_token_or_key
from exo.master.authority import Authority
from exo.master.enrolment import Admit, Held, Reject, Wait, decide_approval, decide_decline, decide_enrolment
from exo.master.errors import AuthorityUnavailableError
from exo.shared.errors import ExoError, NoMasterError
from exo.shared.forgetting import decide_forgetting
from exo.shared.refusals import clean_text, refusal
from exo.shared.types.commands import (
    AccessCommand,
    ApproveNode,
    CreateKey,
    CreateToken,
    DeclineNode,
    DeleteKey,
    DeleteToken,
    Done,
    Enrolled,
    EnrolNode,
    ForgetNode,
    Refusal,
    RemoveNode,
    Reply,
    Waiting,
)
from exo.shared.types.events import AuthorityCreated, CertificateIssued, Decision

LOG_AGAIN_S = 60.0
LOGGED_MAX = 256


class Admission:
    """The master's part in who may come in.

    Args:
        coordinator: Where decisions are committed.
        deciding: Held from the look at the state to the commit; shared with what else the master decides.
        authority: Signs certificates; None where nodes of one host only make up the cluster.
        now_s: The time in Unix seconds: tokens and certificates run out.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        deciding: anyio.Lock,
        authority: Authority | None,
        now_s: Callable[[], float],
    ) -> None:
        self._coordinator = coordinator
        self._deciding = deciding
        self._authority = authority
        self._now_s = now_s
        self._logged_s: dict[tuple[str, str], float] = {}
        """When it was last logged that somebody from a host was refused for a reason."""

    async def handle(self, command: AccessCommand) -> Reply:
        """Carry one command out."""
        try:
            async with self._deciding:
                return await self._handle(command)
        except AuthorityUnavailableError as error:
            return refusal(503, "no_authority", error.message)

    async def _handle(self, command: AccessCommand) -> Reply:
        state, now_s = self._coordinator.state, self._now_s()
        match command:
            case CreateToken():
                events = decide_token_or_key(state, command, now_s)
                if not isinstance(events, Refusal):
                    # A token names the authority, so that the joiner knows whom it may trust.
                    await self._authority_pem(command.command_id)
            case DeleteToken() | CreateKey() | DeleteKey():
                events = decide_token_or_key(state, command, now_s)
            case EnrolNode():
                return await self._enrol(command)
            case ApproveNode():
                events = decide_approval(state, command, now_s)
            case DeclineNode():
                events = decide_decline(state, command, now_s)
            case RemoveNode():
                events = decide_removal(state, command)
            case ForgetNode():
                # Whoever hears this is the master, or was one a moment ago.
                found = decide_forgetting(
                    state, command, own_node_id=self._coordinator.node_id, has_master=True
                )
                return (
                    found if isinstance(found, Refusal) else refusal(409, "has_master", "there is a master")
                )
        if isinstance(events, Refusal):
            return events
        return Done(index=await self._commit(events, command.command_id))

    async def _enrol(self, command: EnrolNode) -> Reply:
        verdict = decide_enrolment(self._coordinator.state, command, self._now_s())
        match verdict:
            case Reject(refusal=why, events=events):
                if events:
                    await self._commit(events, command.command_id)
                self._log_refused(command, why)
                return why
            case Wait(events=events):
                index = await self._commit(events, command.command_id)
                if events:
                    logger.info(
                        "{} at {} wants to join; exo node approve {}",
                        command.node_id,
                        command.address,
                        command.node_id,
                    )
                message = (
                    f"{command.node_id} waits to be let in; on a node of the cluster: "
                    f"exo node approve {command.node_id}"
                )
                return Waiting(message=message, index=index)
            case Held(certificate=certificate):
                authority_pem = await self._authority_pem(command.command_id)
                return Enrolled(
                    certificate_pem=certificate.pem,
                    authority_pem=authority_pem,
                    index=self._coordinator.state.index,
                )
            case Admit(events=events):
                return await self._admit(command, events)

    def _log_refused(self, command: EnrolNode, why: Refusal) -> None:
        """Say so once a minute for each host and reason: strangers reach as far as this."""
        now_s = self._now_s()
        key = (command.address.rpartition(":")[0], why.code)
        if now_s - self._logged_s.get(key, -LOG_AGAIN_S) < LOG_AGAIN_S:
            return
        if len(self._logged_s) >= LOGGED_MAX:
            self._logged_s.clear()
        self._logged_s[key] = now_s
        node_id, address = clean_text(command.node_id), clean_text(command.address)
        logger.warning("{} at {} is not let in: {}", node_id, address, why.message)

    async def _admit(self, command: EnrolNode, events: Sequence[Decision]) -> Reply:
        authority_pem = await self._authority_pem(command.command_id)
        assert self._authority is not None
        issued_at_s = self._now_s()
        try:
            issued = await self._authority.issue(command.request_der, command.node_id)
        except (AuthorityUnavailableError, NoMasterError):
            raise
        except ExoError as error:
            return refusal(422, "request_unusable", f"{error.message}; start the node again, then try again")
        certificate = CertificateIssued(
            node_id=command.node_id,
            serial=issued.serial,
            fingerprint=command.fingerprint,
            issued_at_s=issued_at_s,
            not_after_s=issued.not_after_s,
            certificate_pem=issued.certificate_pem,
        )
        index = await self._commit([*events, certificate], command.command_id)
        logger.info("{} at {} is let in ({})", command.node_id, command.address, command.proof)
        return Enrolled(certificate_pem=issued.certificate_pem, authority_pem=authority_pem, index=index)

    async def _authority_pem(self, cause_id: str) -> str:
        """Return the authority's certificate; the first who needs it has the authority made."""
        found = self._coordinator.state.access.authority_pem
        if found is not None and self._authority is not None:
            return found
        if self._authority is None:
            raise AuthorityUnavailableError(
                "the node that leads has no authority to sign certificates with, so that only nodes of one user "
                "on one host can join; start it with a cluster address that others can reach"
            )
        made = await self._authority.create()
        await self._commit([AuthorityCreated(certificate_pem=made)], cause_id)
        return made

    async def _commit(self, events: Sequence[Decision], cause_id: str) -> int:
        if not events:
            return self._coordinator.state.index
        return await self._coordinator.propose(events, cause_id=cause_id)
