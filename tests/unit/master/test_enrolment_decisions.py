"""Who is let in with what, who waits, who is refused: on the state alone, with the time passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.enrolment import (
    APPROVAL_LIFETIME_S,
    CERTIFICATES_MAX,
    DECLINED_FOR_S,
    WISHES_MAX,
    Admit,
    Held,
    Reject,
    Verdict,
    Wait,
    decide_approval,
    decide_decline,
    decide_enrolment,
)
from exo.shared.types.access import WISH_LIFETIME_S, WRONG_TRIES_MAX, TokenId
from exo.shared.types.commands import ApproveNode, DeclineNode, EnrolNode, Refusal
from exo.shared.types.events import (
    Decision,
    JoinDeclined,
    JoinWished,
    NodeApproved,
    NodeRemoved,
    TokenDeleted,
    TokenGuessed,
    TokenUsed,
)
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State
from support.access_stories import (
    COMMAND_ID,
    DAY_S,
    FINGERPRINT,
    JOINER,
    NOW_S,
    OTHER_FINGERPRINT,
    TOKEN_ID,
    certified,
    enrol,
    token_created,
)
from support.states import cluster, fold, identity

A = NodeId("a")


def start(*events: Decision) -> State:
    return fold(cluster(identity("a")), *events)


def rejected(verdict: Verdict, code: str, status: int) -> str:
    assert isinstance(verdict, Reject), verdict
    assert (verdict.refusal.code, verdict.refusal.status) == (code, status)
    return verdict.refusal.message


def wished(fingerprint: str = FINGERPRINT, *, at_s: float = NOW_S, node_id: str = JOINER) -> JoinWished:
    return JoinWished(
        node_id=NodeId(node_id), name="n", address="x", fingerprint=fingerprint, asked_at_s=at_s
    )


def approve(fingerprint: str | None = None, node_id: str = JOINER) -> ApproveNode:
    return ApproveNode(
        command_id=COMMAND_ID, node_id=NodeId(node_id), fingerprint=fingerprint, approved_by="me"
    )


def test_a_good_token_lets_in_as_often_as_it_has_uses() -> None:
    state = start(token_created(uses=2))
    for name in ("x", "y"):
        verdict = decide_enrolment(state, enrol("token", node_id=name), NOW_S)
        assert verdict == Admit(
            events=(TokenUsed(token_id=TOKEN_ID, node_id=NodeId(name), fingerprint=FINGERPRINT),)
        )
        state = fold(state, *verdict.events, certified(NodeId(name), serial=name))
    message = rejected(decide_enrolment(state, enrol("token", node_id="z"), NOW_S), "token_used_up", 403)
    assert "exo token create" in message


def test_a_node_whose_answer_was_lost_gets_it_again_without_another_use() -> None:
    used = TokenUsed(token_id=TOKEN_ID, node_id=JOINER, fingerprint=FINGERPRINT)
    state = start(token_created(), used, certified())
    again = decide_enrolment(state, enrol("token"), NOW_S + 1)
    assert isinstance(again, Held) and again.certificate.pem == "certificate 1"
    # Another key does not get it, and the token is used up for it.
    rejected(
        decide_enrolment(state, enrol("token", fingerprint=OTHER_FINGERPRINT), NOW_S), "node_id_taken", 409
    )


def test_wrong_secrets_are_counted_and_five_lock_the_token_even_for_the_right_one() -> None:
    state = start(token_created())
    for tries in range(WRONG_TRIES_MAX):
        verdict = decide_enrolment(state, enrol("token", is_proven=False), NOW_S)
        message = rejected(verdict, "token_wrong", 403)
        assert ("it is locked now" in message) == (tries == WRONG_TRIES_MAX - 1)
        assert isinstance(verdict, Reject) and isinstance(verdict.events[0], TokenGuessed)
        state = fold(state, *verdict.events)
    locked = decide_enrolment(state, enrol("token"), NOW_S)
    rejected(locked, "token_locked", 403)
    # Nothing more is written for further tries: nobody fills the log with them.
    assert isinstance(locked, Reject) and locked.events == ()


def test_tokens_that_ran_out_were_deleted_or_never_were_let_nobody_in() -> None:
    state = start(token_created(lifetime_s=10))
    rejected(decide_enrolment(state, enrol("token"), NOW_S + 10), "token_expired", 403)
    gone = fold(state, TokenDeleted(token_id=TOKEN_ID))
    rejected(decide_enrolment(gone, enrol("token"), NOW_S), "token_unknown", 403)
    other = decide_enrolment(state, enrol("token", token_id=TokenId("zzzzzzzzzzzz"), is_proven=False), NOW_S)
    rejected(other, "token_unknown", 403)
    assert isinstance(other, Reject) and other.events == ()


def test_without_a_token_a_node_waits_is_noted_once_and_comes_in_when_approved() -> None:
    state = start()
    first = decide_enrolment(state, enrol(), NOW_S)
    assert isinstance(first, Wait) and len(first.events) == 1
    state = fold(state, *first.events)
    assert state.access.wishes[JOINER].name == "basement"
    assert decide_enrolment(state, enrol(), NOW_S + 5) == Wait()

    events = decide_approval(state, approve(FINGERPRINT), NOW_S + 10)
    assert isinstance(events, list)
    state = fold(state, *events)
    assert state.access.wishes == {}
    rejected(decide_enrolment(state, enrol(fingerprint=OTHER_FINGERPRINT), NOW_S + 11), "other_key", 409)
    assert decide_enrolment(state, enrol(), NOW_S + 11) == Admit()
    # An approval that nobody collects runs out: the node has to be looked at again.
    late = decide_enrolment(state, enrol(), NOW_S + 11 + APPROVAL_LIFETIME_S)
    assert isinstance(late, Wait) and isinstance(late.events[0], JoinWished)

    state = fold(state, certified())
    assert state.access.approvals == {}
    assert isinstance(decide_enrolment(state, enrol(), NOW_S + 12), Held)


def test_what_is_approved_is_the_key_that_was_looked_at() -> None:
    state = start(wished())
    answer = decide_approval(state, approve(OTHER_FINGERPRINT), NOW_S)
    assert isinstance(answer, Refusal) and answer.code == "other_key"
    # A second node under the same id does not take the place of the first.
    message = rejected(decide_enrolment(state, enrol(fingerprint=OTHER_FINGERPRINT), NOW_S), "other_key", 409)
    assert "exo node decline joiner" in message
    old = decide_approval(state, approve(), NOW_S + WISH_LIFETIME_S + 1)
    assert isinstance(old, Refusal) and old.code == "wish_too_old"


def test_approving_or_declining_what_does_not_wait_says_why() -> None:
    codes: dict[str, State] = {
        "already_approved": start(
            wished(), NodeApproved(node_id=JOINER, fingerprint="f", approved_at_s=1, approved_by="x")
        ),
        "already_member": start(certified()),
        "node_not_found": start(),
    }
    decline = DeclineNode(command_id=COMMAND_ID, node_id=JOINER, reason="")
    for code, state in codes.items():
        for answer in (decide_approval(state, approve(), NOW_S), decide_decline(state, decline, NOW_S)):
            assert isinstance(answer, Refusal) and answer.code == code


def test_a_declined_node_is_not_shown_again_for_a_while_but_may_use_a_token() -> None:
    command = DeclineNode(command_id=COMMAND_ID, node_id=JOINER, reason="not ours")
    state = start(wished(), token_created(lifetime_s=DAY_S))
    events = decide_decline(state, command, NOW_S)
    assert isinstance(events, list) and isinstance(events[0], JoinDeclined)
    state = fold(state, *events)
    message = rejected(decide_enrolment(state, enrol(), NOW_S + 60), "join_declined", 403)
    assert "not ours" in message and "59 min" in message
    assert isinstance(decide_enrolment(state, enrol("token"), NOW_S + 60), Admit)
    assert isinstance(decide_enrolment(state, enrol(), NOW_S + DECLINED_FOR_S), Wait)


def test_strangers_cannot_fill_the_list_of_wishes() -> None:
    state = start(*(wished(node_id=f"n{number}") for number in range(WISHES_MAX)))
    rejected(decide_enrolment(state, enrol(), NOW_S), "too_many_wishes", 429)
    later = decide_enrolment(state, enrol(), NOW_S + WISH_LIFETIME_S + 1)
    assert isinstance(later, Wait)
    assert list(fold(state, *later.events).access.wishes) == [JOINER]


@pytest.mark.parametrize("proof", ["none", "token"])
def test_who_has_an_id_keeps_it(proof: str) -> None:
    state = start(token_created())
    command = enrol(proof, node_id="a")  # type: ignore[arg-type]
    assert "exo node remove a" in rejected(decide_enrolment(state, command, NOW_S), "node_id_taken", 409)


def test_a_member_that_was_away_too_long_asks_again_as_itself() -> None:
    state = start(certified(A), token_created(at_s=NOW_S + 40 * DAY_S))
    later_s = NOW_S + 40 * DAY_S
    assert isinstance(decide_enrolment(state, enrol(node_id="a"), later_s), Wait)
    assert isinstance(decide_enrolment(state, enrol("token", node_id="a"), later_s), Admit)
    stranger = enrol(node_id="a", fingerprint=OTHER_FINGERPRINT)
    rejected(decide_enrolment(state, stranger, later_s), "node_id_taken", 409)


def test_the_users_own_nodes_on_the_host_come_in_at_once() -> None:
    state = start()
    assert decide_enrolment(state, enrol("host_secret"), NOW_S) == Admit()
    assert decide_enrolment(state, enrol("host_secret", node_id="a"), NOW_S) == Admit()
    wrong = enrol("host_secret", is_proven=False)
    rejected(decide_enrolment(state, wrong, NOW_S), "host_secret_wrong", 403)
    taken = fold(state, certified(A, fingerprint=OTHER_FINGERPRINT))
    rejected(decide_enrolment(taken, enrol("host_secret", node_id="a"), NOW_S), "node_id_taken", 409)
    # The way to the master is the host's own: no certificate speaks for the node when it has its own renewed.
    own = fold(state, certified(A))
    assert isinstance(decide_enrolment(own, enrol("host_secret", node_id="a"), NOW_S + DAY_S), Held)
    assert decide_enrolment(own, enrol("host_secret", node_id="a"), NOW_S + 20 * DAY_S) == Admit()
    for number in range(2, CERTIFICATES_MAX + 1):
        own = fold(own, certified(A, serial=f"{number}"))
    again = enrol("host_secret", node_id="a")
    rejected(decide_enrolment(own, again, NOW_S + 20 * DAY_S), "renewed_too_often", 429)


def test_certificates_are_renewed_by_who_has_one() -> None:
    state = start(certified())
    due_s = NOW_S + 20 * DAY_S
    assert isinstance(decide_enrolment(state, enrol("certificate"), NOW_S + DAY_S), Held)
    assert decide_enrolment(state, enrol("certificate"), due_s) == Admit()
    new_key = enrol("certificate", fingerprint=OTHER_FINGERPRINT)
    assert decide_enrolment(state, new_key, NOW_S + 1) == Admit()
    rejected(decide_enrolment(state, enrol("certificate", is_proven=False), due_s), "certificate_wrong", 403)
    over_s = NOW_S + 30 * DAY_S
    assert decide_enrolment(state, enrol("certificate"), over_s) == Admit()
    other_key = enrol("certificate", fingerprint=OTHER_FINGERPRINT)
    rejected(decide_enrolment(state, other_key, over_s), "certificate_over", 403)
    for number in range(2, CERTIFICATES_MAX + 1):
        state = fold(state, certified(serial=f"{number}"))
    rejected(decide_enrolment(state, new_key, NOW_S + 1), "renewed_too_often", 429)


def test_a_removed_node_comes_back_only_when_somebody_lets_it() -> None:
    used = TokenUsed(token_id=TOKEN_ID, node_id=JOINER, fingerprint=FINGERPRINT)
    removed = NodeRemoved(node_id=JOINER, reason="sold")
    state = start(token_created(uses=9), used, certified(), removed)
    rejected(decide_enrolment(state, enrol("certificate"), NOW_S), "node_removed", 403)
    rejected(decide_enrolment(state, enrol("token"), NOW_S), "node_removed", 403)
    wish = decide_enrolment(state, enrol("host_secret"), NOW_S)
    assert isinstance(wish, Wait) and isinstance(wish.events[0], JoinWished)
    state = fold(state, *wish.events)
    approved = decide_approval(state, approve(), NOW_S)
    assert isinstance(approved, list)
    state = fold(state, *approved)
    assert decide_enrolment(state, enrol(), NOW_S) == Admit()
    back = fold(state, certified(serial="2"))
    assert back.access.removed == {}
    assert back.access.refusal_reason(JOINER, "2") is None
    assert "revoked" in (back.access.refusal_reason(JOINER, "1") or "")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"node_id": NodeId("a/b")}, "node_id_malformed"),
        ({"node_id": NodeId("")}, "node_id_malformed"),
        ({"node_id": NodeId("x" * 65)}, "node_id_malformed"),
        ({"node_id": NodeId("ä")}, "node_id_malformed"),
        ({"fingerprint": "short"}, "fingerprint_malformed"),
        ({"request_der": b""}, "request_too_long"),
        ({"request_der": b"x" * 8193}, "request_too_long"),
    ],
)
def test_what_is_malformed_is_refused(changes: dict[str, object], code: str) -> None:
    command: EnrolNode = replace(enrol(), **changes)
    rejected(decide_enrolment(start(), command, NOW_S), code, 422)


commands = st.builds(
    lambda proof, is_proven, fingerprint, node_id: enrol(
        proof, is_proven=is_proven, fingerprint=fingerprint, node_id=node_id
    ),
    st.sampled_from(["none", "token", "host_secret", "certificate"]),
    st.booleans(),
    st.sampled_from([FINGERPRINT, OTHER_FINGERPRINT]),
    st.sampled_from(["a", JOINER, "third"]),
)
steps = st.lists(
    st.tuples(
        commands, st.sampled_from([0.0, 60.0, 3600.0, 10 * DAY_S]), st.sampled_from(["", "", "+", "-", "x"])
    ),
    max_size=25,
)


@given(steps=steps, uses=st.integers(1, 3))
def test_nobody_is_let_in_without_a_reason(steps: list[tuple[EnrolNode, float, str]], uses: int) -> None:
    """In whatever order things happen: behind a certificate is a proof, an approval or an earlier certificate."""
    state = start(token_created(uses=uses, lifetime_s=DAY_S))
    now_s, serial, let_in_by_token = NOW_S, 0, 0
    for command, pause_s, what in steps:
        now_s += pause_s
        node_id = command.node_id
        if what == "+":
            answer = decide_approval(state, approve(node_id=node_id), now_s)
            state = fold(state, *answer) if isinstance(answer, list) else state
        elif what == "-":
            decline = DeclineNode(command_id=COMMAND_ID, node_id=node_id, reason="")
            answer = decide_decline(state, decline, now_s)
            state = fold(state, *answer) if isinstance(answer, list) else state
        elif what == "x":
            state = fold(state, NodeRemoved(node_id=node_id, reason="test"))
        access = state.access
        verdict = decide_enrolment(state, command, now_s)
        match verdict:
            case Admit(events=events):
                approval = access.approvals.get(node_id)
                is_approved = approval is not None and approval.fingerprint == command.fingerprint
                assert command.is_proven or is_approved
                let_in_by_token += any(isinstance(event, TokenUsed) for event in events)
                serial += 1
                issued = certified(node_id, serial=f"{serial}", fingerprint=command.fingerprint, at_s=now_s)
                state = fold(state, *events, issued)
            case Held(certificate=held):
                assert held.fingerprint == command.fingerprint and held.not_after_s > now_s
                assert access.refusal_reason(node_id, held.serial) is None
            case Wait(events=events) | Reject(events=events):
                state = fold(state, *events)
    assert let_in_by_token <= uses
