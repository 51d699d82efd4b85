"""The master carries commands about access out: signed and committed together, or refused with the reason."""

import anyio
import pytest
from loguru import logger

from exo.master.errors import AuthorityUnavailableError
from exo.master.loop import Master
from exo.master.solver import Solver
from exo.shared.errors import ExoError
from exo.shared.types.access import KeyId
from exo.shared.types.commands import (
    ApproveNode,
    Command,
    DeclineNode,
    DeleteKey,
    DeleteToken,
    Done,
    Enrolled,
    ForgetNode,
    Refusal,
    RemoveNode,
    Reply,
    Waiting,
)
from exo.shared.types.events import AuthorityCreated, CertificateIssued, TokenCreated, TokenUsed
from exo.shared.types.ids import NodeId
from support.access_stories import (
    AUTHORITY_PEM,
    COMMAND_ID,
    FINGERPRINT,
    JOINER,
    NOW_S,
    TOKEN_ID,
    VERIFIER,
    MemoryAuthority,
    create_key,
    create_token,
    enrol,
)
from support.coordinator import MemoryCoordinator
from support.states import cluster, identity


class Ruling:
    """A master over a coordinator in memory."""

    def __init__(self, authority: MemoryAuthority | None = None) -> None:
        self.coordinator = MemoryCoordinator(NodeId("a"), cluster(identity("a"), identity("b")))
        self.now_s = NOW_S
        self.master = Master(
            self.coordinator, Solver(), lambda: "id", authority=authority, now_s=lambda: self.now_s
        )

    async def ask(self, command: Command) -> Reply:
        return await self.master.handle(command)


@pytest.fixture
def authority() -> MemoryAuthority:
    return MemoryAuthority()


@pytest.fixture
def ruling(authority: MemoryAuthority) -> Ruling:
    return Ruling(authority)


async def test_the_first_token_makes_the_authority(ruling: Ruling, authority: MemoryAuthority) -> None:
    reply = await ruling.ask(create_token())
    assert isinstance(reply, Done) and reply.index == ruling.coordinator.state.index
    assert [type(event) for event in ruling.coordinator.proposed] == [AuthorityCreated, TokenCreated]
    assert ruling.coordinator.state.access.authority_pem == AUTHORITY_PEM
    await ruling.ask(DeleteToken(command_id=COMMAND_ID, token_id=TOKEN_ID))
    await ruling.ask(create_token())
    assert authority.created == 1


async def test_a_refused_token_makes_no_authority(ruling: Ruling, authority: MemoryAuthority) -> None:
    assert isinstance(await ruling.ask(create_token(uses=0)), Refusal)
    assert (authority.created, ruling.coordinator.proposed) == (0, [])


async def test_a_use_and_its_certificate_are_committed_together(ruling: Ruling) -> None:
    await ruling.ask(create_token())
    batches: list[list[type]] = []
    ruling.coordinator.on_propose = lambda events: batches.append([type(event) for event in events])
    reply = await ruling.ask(enrol("token"))
    assert isinstance(reply, Enrolled)
    assert (reply.certificate_pem, reply.authority_pem) == ("certificate 1", AUTHORITY_PEM)
    assert batches == [[TokenUsed, CertificateIssued]]
    assert await ruling.ask(enrol("token")) == reply
    assert len(batches) == 1


async def test_joiners_at_the_same_time_use_a_token_once(ruling: Ruling) -> None:
    await ruling.ask(create_token(uses=1))
    replies: list[Reply] = []

    async def join(name: str) -> None:
        replies.append(await ruling.ask(enrol("token", node_id=name)))

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(join, f"n{number}")
    assert sorted(type(reply).__name__ for reply in replies) == ["Enrolled", "Refusal", "Refusal", "Refusal"]


async def test_a_wish_waits_for_its_approval(ruling: Ruling) -> None:
    reply = await ruling.ask(enrol())
    assert isinstance(reply, Waiting) and "exo node approve joiner" in reply.message
    approval = ApproveNode(command_id=COMMAND_ID, node_id=JOINER, fingerprint=FINGERPRINT, approved_by="me")
    assert isinstance(await ruling.ask(approval), Done)
    assert isinstance(await ruling.ask(enrol()), Enrolled)
    removal = RemoveNode(command_id=COMMAND_ID, node_id=JOINER, reason="")
    assert isinstance(await ruling.ask(removal), Done)
    assert JOINER in ruling.coordinator.state.access.removed


async def test_a_wrong_try_is_committed_before_it_is_refused(ruling: Ruling) -> None:
    await ruling.ask(create_token())
    reply = await ruling.ask(enrol("token", is_proven=False))
    assert isinstance(reply, Refusal) and reply.code == "token_wrong"
    assert ruling.coordinator.state.access.tokens[TOKEN_ID].wrong_tries == 1


async def test_a_request_that_cannot_be_signed_uses_nothing_up(
    ruling: Ruling, authority: MemoryAuthority
) -> None:
    await ruling.ask(create_token())
    authority.error = ExoError("the request names another node")
    reply = await ruling.ask(enrol("token"))
    assert isinstance(reply, Refusal) and (reply.status, reply.code) == (422, "request_unusable")
    authority.error = AuthorityUnavailableError("this node does not have the authority's key")
    reply = await ruling.ask(enrol("token"))
    assert isinstance(reply, Refusal) and (reply.status, reply.code) == (503, "no_authority")
    assert ruling.coordinator.state.access.tokens[TOKEN_ID].uses_left == 1


async def test_without_an_authority_keys_work_and_tokens_say_why_not() -> None:
    ruling = Ruling()
    assert isinstance(await ruling.ask(create_key("infer")), Done)
    reply = await ruling.ask(create_token())
    assert isinstance(reply, Refusal) and (reply.status, reply.code) == (503, "no_authority")
    assert ruling.coordinator.state.access.tokens == {}
    assert isinstance(await ruling.ask(DeleteKey(command_id=COMMAND_ID, key_id=KeyId("abcd1234"))), Done)
    assert ruling.coordinator.state.access.keys == {}


async def test_the_rest_is_refused_with_the_next_step(ruling: Ruling) -> None:
    decline = await ruling.ask(DeclineNode(command_id=COMMAND_ID, node_id=JOINER, reason=""))
    assert isinstance(decline, Refusal) and decline.code == "node_not_found"
    forget = await ruling.ask(ForgetNode(command_id=COMMAND_ID, node_ids=(NodeId("b"),)))
    assert isinstance(forget, Refusal) and forget.code == "has_master"


async def test_no_verifier_and_no_hash_is_logged(ruling: Ruling) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, level=0)
    try:
        await ruling.ask(create_token())
        key = create_key("infer")
        await ruling.ask(key)
        await ruling.ask(enrol("token", is_proven=False))
        await ruling.ask(enrol("token"))
        await ruling.ask(enrol(node_id="other"))
    finally:
        logger.remove(sink)
    assert len(lines) == 3
    assert not [line for line in lines if VERIFIER in line or key.hash in line]


async def test_strangers_do_not_fill_the_log_nor_forge_lines_in_it(ruling: Ruling) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, level=0, format="{message}")
    try:
        for number in range(20):
            await ruling.ask(enrol("token", node_id=f"x{number}\n\x1b[31mforged"))
        ruling.now_s += 61
        await ruling.ask(enrol("token", node_id="again/malformed"))
    finally:
        logger.remove(sink)
    assert [line.partition(" at ")[0] for line in lines] == ["x0  [31mforged", "again/malformed"]
