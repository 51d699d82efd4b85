"""Tokens, keys, removing and forgetting: what is decided on which state, and what every refusal says to do next."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from exo.master.access import (
    KEYS_MAX,
    TOKENS_MAX,
    decide_removal,
    decide_token_or_key,
)
from exo.shared.forgetting import decide_forgetting
from exo.shared.refusals import clean_text
from exo.shared.types.access import SCOPES, KeyId, KeyLimits, Scope, TokenId
from exo.shared.types.commands import DeleteKey, DeleteToken, ForgetNode, Refusal, RemoveNode
from exo.shared.types.events import (
    CertificateRevoked,
    JoinWished,
    KeyCreated,
    KeyDeleted,
    KeyLimited,
    NodeDisconnected,
    NodeRemoved,
    TermOpened,
    TokenCreated,
    TokenDeleted,
    VotersChanged,
)
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.state import State
from exo.shared.types.voters import Voters
from support.access_stories import (
    COMMAND_ID,
    DAY_S,
    FINGERPRINT,
    JOINER,
    NOW_S,
    TOKEN_ID,
    certified,
    create_key,
    create_token,
    key_created,
    token_created,
)
from support.states import cluster, fold, identity


def members(*names: str) -> State:
    return cluster(*(identity(name) for name in names))


def refused(answer: object, code: str, status: int) -> str:
    assert isinstance(answer, Refusal), answer
    assert (answer.code, answer.status) == (code, status)
    return answer.message


def test_a_token_counts_from_the_time_that_was_passed_in() -> None:
    (event,) = decide_token_or_key(members("a"), create_token(uses=3), NOW_S)  # type: ignore[misc]
    assert isinstance(event, TokenCreated)
    assert (event.created_at_s, event.expires_at_s, event.uses) == (NOW_S, NOW_S + 3600, 3)


@pytest.mark.parametrize("lifetime_s", [0, -1, 31 * DAY_S, float("inf"), float("nan")])
def test_a_token_does_not_last_for_ever(lifetime_s: float) -> None:
    answer = decide_token_or_key(members("a"), create_token(lifetime_s=lifetime_s), NOW_S)
    assert "up to 30 days" in refused(answer, "lifetime_out_of_range", 422)


@pytest.mark.parametrize("uses", [0, -1, 1001])
def test_a_token_has_a_number_of_uses(uses: int) -> None:
    refused(decide_token_or_key(members("a"), create_token(uses=uses), NOW_S), "uses_out_of_range", 422)


def test_the_same_token_or_key_is_not_made_twice_and_malformed_ones_never() -> None:
    state = fold(members("a"), token_created(), key_created("x", "infer"))
    refused(decide_token_or_key(state, create_token(), NOW_S), "token_exists", 409)
    refused(decide_token_or_key(state, create_key("infer"), NOW_S), "key_exists", 409)
    bad_token = replace(create_token(token_id=TokenId("abcdefghijk2")), verifier="the secret itself")
    refused(decide_token_or_key(state, bad_token, NOW_S), "token_malformed", 422)
    bad_key = replace(create_key("infer", key_id="other123"), hash="the secret itself")
    refused(decide_token_or_key(state, bad_key, NOW_S), "key_malformed", 422)


def test_tokens_and_keys_have_a_limit_and_old_tokens_make_room() -> None:
    state = members("a")
    access = fold(state, token_created()).access
    token = access.tokens[TOKEN_ID]
    full = replace(access, tokens={TokenId(f"{number}"): token for number in range(TOKENS_MAX)})
    answer = decide_token_or_key(replace(state, access=full), create_token(), NOW_S)
    assert "exo token delete" in refused(answer, "too_many_tokens", 409)
    later_s = token.expires_at_s + 1
    (event,) = decide_token_or_key(replace(state, access=full), create_token(), later_s)  # type: ignore[misc]
    assert list(fold(replace(state, access=full), event).access.tokens) == [TOKEN_ID]

    key = fold(state, key_created("x", "infer")).access.keys[KeyId("abcd1234")]
    full = replace(access, keys={KeyId(f"{number}"): key for number in range(KEYS_MAX)})
    answer = decide_token_or_key(replace(state, access=full), create_key("infer"), NOW_S)
    assert "exo key delete" in refused(answer, "too_many_keys", 409)


def test_a_key_keeps_its_known_scopes_in_order_and_needs_one() -> None:
    wanted: tuple[Scope, ...] = ("admin", "read", "admin")
    (event,) = decide_token_or_key(members("a"), create_key(*wanted), NOW_S)  # type: ignore[misc]
    assert isinstance(event, KeyCreated)
    assert (event.scopes, event.expires_at_s) == (("read", "admin"), None)
    assert "--scope" in refused(decide_token_or_key(members("a"), create_key(), NOW_S), "no_scope", 422)
    refused(
        decide_token_or_key(members("a"), create_key("infer", lifetime_s=1e12), NOW_S),
        "lifetime_out_of_range",
        422,
    )


def test_deleting_names_what_is_near() -> None:
    state = fold(members("a"), token_created(), key_created("x", "infer"))
    assert decide_token_or_key(state, DeleteToken(command_id=COMMAND_ID, token_id=TOKEN_ID), NOW_S) == [
        TokenDeleted(token_id=TOKEN_ID)
    ]
    key_id = KeyId("abcd1234")
    assert decide_token_or_key(state, DeleteKey(command_id=COMMAND_ID, key_id=key_id), NOW_S) == [
        KeyDeleted(key_id=key_id)
    ]
    answer = decide_token_or_key(state, DeleteKey(command_id=COMMAND_ID, key_id=KeyId("abcd")), NOW_S)
    assert "exo key list" in refused(answer, "key_not_found", 404)
    assert isinstance(answer, Refusal) and answer.near_matches == ("abcd1234",)


def test_removing_a_node_revokes_every_certificate_of_it() -> None:
    state = fold(members("a", "b"), certified(NodeId("b")), certified(NodeId("b"), serial="2"))
    command = RemoveNode(command_id=COMMAND_ID, node_id=NodeId("b"), reason="sold\nit")
    events = decide_removal(state, command)
    assert isinstance(events, list)
    assert [type(event) for event in events] == [CertificateRevoked, CertificateRevoked, NodeRemoved]
    after = fold(state, *events)
    assert list(after.nodes) == ["a"]
    assert set(after.access.revoked) == {"1", "2"} and after.access.certificates == {}
    assert after.access.refusal_reason(NodeId("b"), "3") == "the node was removed: sold it"
    # A log in which the node was only removed leads to the same.
    assert fold(state, NodeRemoved(node_id=NodeId("b"), reason="sold it")).access == after.access


def test_the_master_itself_a_wish_and_a_stranger_are_not_removed() -> None:
    state = members("a", "b")

    def remove(node_id: str, on: State = state) -> object:
        return decide_removal(on, RemoveNode(command_id=COMMAND_ID, node_id=NodeId(node_id), reason=""))

    told = refused(remove("a"), "node_leads", 409)
    assert told.startswith("host-a leads the cluster") and "such as host-b: exo node remove a" in told
    assert "exo node list" in refused(remove("c"), "node_not_found", 404)
    wish = JoinWished(node_id=JOINER, name="x", address="y", fingerprint=FINGERPRINT, asked_at_s=NOW_S)
    assert "exo node decline joiner" in refused(remove("joiner", fold(state, wish)), "node_not_member", 409)
    # One that has a certificate and never came is removed all the same.
    assert isinstance(remove("joiner", fold(state, certified())), list)


def voting(*names: str, also: tuple[str, ...] = ()) -> State:
    state = members(*names, *also)
    voters = Voters(voters=tuple(NodeId(name) for name in sorted(names)))
    return fold(state, VotersChanged(voters=voters, reason="test"))


@pytest.mark.parametrize(
    ("size", "away", "is_refused"),
    [(3, 0, False), (3, 1, True), (5, 1, False), (5, 2, True), (4, 1, False), (4, 2, True), (2, 0, False)],
)
def test_a_voter_that_the_others_need_is_not_removed(size: int, away: int, is_refused: bool) -> None:
    """It agrees to nothing once it knows; the others have to be able to give its vote up."""
    names = "abcde"[:size]
    state = voting(*names, also=("o",))
    for name in names[size - away :]:
        state = fold(state, NodeDisconnected(node_id=NodeId(name), reason="gone"))

    def remove(node_id: str) -> object:
        return decide_removal(state, RemoveNode(command_id=COMMAND_ID, node_id=NodeId(node_id), reason=""))

    if is_refused:
        assert f"start {' or '.join(names[size - away :])} first" in refused(remove("b"), "vote_needed", 409)
    else:
        assert isinstance(remove("b"), list)
    for other in [*names[size - away :], "o"]:
        assert isinstance(remove(other), list), "who is gone, or has no vote, is not needed"


def forget(state: State, *names: str, own: str = "a", has_master: bool = False) -> object:
    command = ForgetNode(command_id=COMMAND_ID, node_ids=tuple(NodeId(name) for name in names))
    return decide_forgetting(state, command, own_node_id=NodeId(own), has_master=has_master)


def test_all_lost_voters_are_given_up_together_and_only_without_a_master() -> None:
    state = voting("a", "b", "c", also=("d",))
    assert forget(state, "c", "b") == ("b", "c")
    assert "exo node remove b && exo node remove c" in refused(
        forget(state, "b", "c", has_master=True), "has_master", 409
    )
    assert "exo node forget b c --yes" in refused(forget(state, "b"), "others_may_go_on", 409)
    refused(forget(state, "d"), "not_needed", 409)
    refused(forget(state, "a", "b"), "node_is_self", 409)
    refused(forget(state, "nobody"), "node_not_found", 404)
    refused(forget(state, "b", own="d"), "not_a_voter", 409)
    refused(forget(state), "nobody_named", 422)


def test_a_replica_may_go_on_without_the_only_voter() -> None:
    state = members("a", "b")
    voters = Voters(voters=(NodeId("a"),), replicas=(NodeId("b"),))
    state = fold(state, VotersChanged(voters=voters, reason="test"), TermOpened(master_node_id=NodeId("a")))
    assert forget(state, "a", own="b") == ("a",)


@given(text=st.text(max_size=300))
def test_texts_from_outside_are_one_printable_line(text: str) -> None:
    cleaned = clean_text(text)
    assert cleaned.isprintable() and len(cleaned) <= 128


def test_scopes_are_complete() -> None:
    assert SCOPES == ("read", "infer", "operate", "admin")


def test_limits_are_an_event_of_their_own_beside_the_key() -> None:
    device_id = DeviceId("a/cpu:0")
    limits = KeyLimits(requests_per_minute=5, tokens_per_day=7, device_ids=(device_id, device_id))
    created, limited = decide_token_or_key(members("a"), create_key("infer", limits=limits), NOW_S)  # type: ignore[misc]
    assert isinstance(created, KeyCreated)
    assert limited == KeyLimited(
        key_id=KeyId("abcd1234"), requests_per_minute=5, tokens_per_day=7, device_ids=(device_id,)
    )
    state = fold(members("a"), created, limited)
    expected = KeyLimits(requests_per_minute=5, tokens_per_day=7, device_ids=(device_id,))
    assert state.access.keys[KeyId("abcd1234")].limits == expected
    again = fold(state, KeyLimited(key_id=KeyId("abcd1234"), tokens_per_day=9))
    assert again.access.keys[KeyId("abcd1234")].limits == KeyLimits(tokens_per_day=9)
    unknown = fold(members("a"), KeyLimited(key_id=KeyId("nothing")))
    assert unknown.access == members("a").access


@pytest.mark.parametrize(
    ("scopes", "limits", "code", "said"),
    [
        (("admin", "infer"), KeyLimits(tokens_per_day=1), "limits_on_admin", "leave out the scope admin"),
        (("admin",), KeyLimits(device_ids=(DeviceId("a/cpu:0"),)), "limits_on_admin", "without limits"),
        (
            ("infer",),
            KeyLimits(requests_per_minute=0),
            "quota_out_of_range",
            "1 to 1000000 requests a minute",
        ),
        (("infer",), KeyLimits(tokens_per_day=-1), "quota_out_of_range", "tokens a day, not -1"),
        (("infer",), KeyLimits(tokens_per_day=10**12 + 1), "quota_out_of_range", "tokens a day"),
        (("infer",), KeyLimits(device_ids=(DeviceId("a/gpu"),)), "device_not_found", "no device 'a/gpu'"),
        (("infer",), KeyLimits(device_ids=(DeviceId("a/cpu:0"),) * 257), "too_many_devices", "256"),
    ],
)
def test_limits_that_a_key_cannot_have_are_refused(
    scopes: tuple[Scope, ...], limits: KeyLimits, code: str, said: str
) -> None:
    answer = decide_token_or_key(members("a"), create_key(*scopes, limits=limits), NOW_S)
    assert said in refused(answer, code, 422)
    assert answer.near_matches == (("a/cpu:0",) if code == "device_not_found" else ())  # type: ignore[union-attr]
