"""Tokens, keys, nodes and the audit log over HTTP; and that no secret is in anything but the answer that made it."""

import json
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from loguru import logger

import exo.api
from exo.api.access_join import TOKEN_FILE, PendingJoin, read_pending_join, remove_pending_join
from exo.api.context import NodeActions
from exo.api.present_access import without_secrets
from exo.api.schemas.access import (
    AuditList,
    AuditVerification,
    Decided,
    JoinNoted,
    KeyList,
    KeyMade,
    NodeList,
    TokenList,
    TokenMade,
)
from exo.api.schemas.problems import Problem
from exo.cluster.trust.token import parse_token, token_id, token_verifier
from exo.shared.errors import ConfigurationError, NoMasterError
from exo.shared.types.events import JoinWished, LogEntry, VotersChanged
from exo.shared.types.ids import NodeId
from exo.shared.types.voters import Voters
from support.access_stories import FINGERPRINT, JOINER, NOW_S, OTHER_FINGERPRINT, TOKEN_ID, certified
from support.api_world import World, client_of, parse, rule, served
from support.states import cluster, fold, identity


@pytest.fixture
def ruled(world: World) -> World:
    """A world in which a real master decides."""
    rule(world)
    return world


@pytest.fixture
async def admin(ruled: World) -> Any:
    async with client_of(ruled.app()) as client:
        yield client


def wish(world: World, node_id: str = JOINER) -> None:
    event = JoinWished(
        node_id=NodeId(node_id),
        name="basement",
        address="192.0.2.7:40000",
        fingerprint=FINGERPRINT,
        asked_at_s=NOW_S,
    )
    world.coordinator.set_state(fold(world.coordinator.state, event))


async def test_a_token_is_made_listed_and_deleted(ruled: World, admin: httpx.AsyncClient) -> None:
    response = await admin.post("/tokens", json={"lifetime_s": 600, "uses": 2})
    assert response.status_code == 201 and response.headers["cache-control"] == "no-store"
    made = parse(TokenMade, response.content)
    plain = parse_token(made.token)
    assert made.token_id == token_id(token_verifier(plain.secret))
    nodes = parse(NodeList, (await admin.get("/nodes")).content)
    assert plain.authority_hash == nodes.authority_hash
    assert (made.uses_left, made.created_by) == (2, "loopback")
    assert made.expires_at == "2027-01-15T08:10:00.000Z"
    (listed,) = parse(TokenList, (await admin.get("/tokens")).content).tokens
    assert listed.model_dump() == made.model_dump(exclude={"token", "index"})
    deleted = await admin.delete(f"/tokens/{made.token_id}")
    assert parse(Decided, deleted.content).index == ruled.coordinator.state.index
    assert parse(TokenList, (await admin.get("/tokens")).content).tokens == []
    again = await admin.delete(f"/tokens/{made.token_id}")
    assert (again.status_code, Problem.model_validate_json(again.content).code) == (404, "token_not_found")


async def test_a_key_is_made_used_listed_and_deleted(ruled: World, admin: httpx.AsyncClient) -> None:
    body = {"scopes": ["admin", "read"], "name": "laptop", "lifetime_s": 3e8}
    made = parse(KeyMade, (await admin.post("/keys", json=body)).content)
    assert (made.scopes, made.name, made.is_expired) == (["read", "admin"], "laptop", False)
    headers = {"authorization": f"Bearer {made.key}"}
    async with client_of(ruled.app(), address="192.0.2.7", headers=headers) as elsewhere:
        (listed,) = parse(KeyList, (await elsewhere.get("/keys")).content).keys
        assert listed.model_dump() == made.model_dump(exclude={"key", "index"})
        second = parse(KeyMade, (await elsewhere.post("/keys", json={"scopes": ["infer"]})).content)
        assert second.created_by == f"key {made.key_id}" and second.expires_at is None
        assert (await elsewhere.delete(f"/keys/{made.key_id}")).status_code == 200
        assert (await elsewhere.get("/keys")).status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/tokens", {"uses": 0}, 422),
        ("/tokens", {"lifetime_s": 1e9}, 422),
        ("/tokens", {"lifetime_s": "1h"}, 422),
        ("/tokens", {"secret": "mine"}, 422),
        ("/keys", {"scopes": []}, 422),
        ("/keys", {"scopes": ["root"]}, 422),
        ("/keys", {}, 422),
        ("/nodes/joiner/approve", {"fingerprint": "short"}, 422),
        ("/nodes/nobody/approve", {}, 404),
        ("/nodes/nobody/decline", {}, 404),
        ("/nodes/forget", {"node_ids": ["b"]}, 422),
        ("/nodes/forget", {"node_ids": ["b"], "is_loss_accepted": False}, 422),
        ("/nodes/forget", {"node_ids": ["b"], "is_loss_accepted": True}, 409),
        ("/access/join", {"token": "exo1.x"}, 422),
        ("/access/join", {"token": f"exo1.{'a' * 32}.{'b' * 32}", "address": "nowhere:"}, 422),
    ],
)
async def test_what_cannot_be_is_refused(
    admin: httpx.AsyncClient, path: str, body: dict[str, Any], status: int
) -> None:
    response = await admin.post(path, json=body)
    assert response.status_code == status
    assert Problem.model_validate_json(response.content).detail


async def test_without_a_master_nothing_is_decided(ruled: World, admin: httpx.AsyncClient) -> None:
    ruled.coordinator.has_master = False
    assert (await admin.post("/keys", json={"scopes": ["infer"]})).status_code == 503
    (line,) = parse(AuditList, (await admin.get("/audit")).content).entries
    assert (line.what, line.result, line.code) == ("CreateKey", "unknown", "NoMasterError")


async def test_nodes_are_listed_with_their_wishes_approved_declined_and_removed(
    ruled: World, admin: httpx.AsyncClient
) -> None:
    wish(ruled)
    wish(ruled, "other")
    ruled.coordinator.set_state(fold(ruled.coordinator.state, certified(NodeId("b"))))
    found = parse(NodeList, (await admin.get("/nodes")).content)
    assert [(node.node_id, node.is_master) for node in found.nodes] == [("a", True), ("b", False)]
    assert found.nodes[0].certificate_expires_at is None
    assert (found.nodes[1].certificate_expires_at or "").startswith("2027-02-14")
    assert [one.node_id for one in found.wishes] == ["joiner", "other"]

    wrong = await admin.post("/nodes/joiner/approve", json={"fingerprint": OTHER_FINGERPRINT})
    assert Problem.model_validate_json(wrong.content).code == "other_key"
    assert (await admin.post("/nodes/joiner/approve", json={"fingerprint": FINGERPRINT})).status_code == 200
    assert (await admin.post("/nodes/other/decline", json={"reason": "not ours"})).status_code == 200
    assert (await admin.delete("/nodes/b", params={"reason": "sold"})).status_code == 200
    access = ruled.coordinator.state.access
    assert access.approvals[JOINER].approved_by == "loopback"
    assert access.declined[NodeId("other")].reason == "not ours"
    assert access.removed == {"b": "sold"} and list(ruled.coordinator.state.nodes) == ["a"]


async def test_voters_are_forgotten_by_the_node_itself_and_only_without_a_master(
    ruled: World, admin: httpx.AsyncClient
) -> None:
    voters = Voters(voters=(NodeId("a"), NodeId("b")))
    ruled.coordinator.set_state(fold(ruled.coordinator.state, VotersChanged(voters=voters, reason="test")))
    body = {"node_ids": ["b"], "is_loss_accepted": True}
    refused = await admin.post("/nodes/forget", json=body)
    assert Problem.model_validate_json(refused.content).code == "has_master"
    ruled.coordinator.has_master = False
    assert (await admin.post("/nodes/forget", json=body)).status_code == 200
    assert ruled.coordinator.forgotten == [("b",)]
    lines = parse(AuditList, (await admin.get("/audit")).content).entries
    assert [(line.result, line.code) for line in lines] == [("refused", "has_master"), ("done", None)]


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigurationError("etcd does that"), 409), (NoMasterError("it failed"), 503)]
)
async def test_a_coordinator_that_cannot_forget_says_so(
    ruled: World, monkeypatch: pytest.MonkeyPatch, admin: httpx.AsyncClient, error: Exception, status: int
) -> None:
    voters = Voters(voters=(NodeId("a"), NodeId("b")))
    ruled.coordinator.set_state(fold(ruled.coordinator.state, VotersChanged(voters=voters, reason="test")))
    ruled.coordinator.has_master = False

    async def fails(_: object) -> int:
        raise error

    monkeypatch.setattr(ruled.coordinator, "forget", fails)
    response = await admin.post("/nodes/forget", json={"node_ids": ["b"], "is_loss_accepted": True})
    assert (response.status_code, str(error) in response.text) == (status, True)


async def test_a_token_to_join_with_is_left_for_the_node_and_used_at_once_where_it_can(world: World) -> None:
    token = f"exo1.{'a' * 32}.{'b' * 32}"
    wanted: list[bool] = []
    world.actions = NodeActions(join_wanted=lambda: wanted.append(True))
    async with client_of(world.app()) as http:
        refused = await http.post("/access/join", json={"token": token})
        assert refused.status_code == 409 and "its own has instances" in refused.text
        assert not (world.home / TOKEN_FILE).exists()
        (line,) = (await http.get("/audit")).json()["entries"]
        assert (line["what"], line["result"], line["code"]) == ("JoinCluster", "refused", "cannot_join")
        world.coordinator.set_state(cluster(identity("a")))
        response = await http.post("/access/join", json={"token": token.upper(), "address": "192.0.2.9"})
        noted = parse(JoinNoted, response.content)
        lines = await http.get("/audit")
    assert (noted.authority_hash, noted.is_used_now, wanted) == ("a" * 32, True, [True])
    assert (world.home / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    pending = read_pending_join(world.home)
    assert pending is not None and (pending.token, pending.address) == (token, "192.0.2.9:52416")
    assert token not in repr(pending) and "b" * 32 not in lines.text and "JoinCluster" in lines.text
    async with client_of(world.app()) as http:
        noted = parse(JoinNoted, (await http.post("/access/join", json={"address": "192.0.2.9"})).content)
    assert (noted.authority_hash, noted.is_used_now) == (None, True)
    assert read_pending_join(world.home) == PendingJoin(address="192.0.2.9:52416")
    remove_pending_join(world.home)
    assert read_pending_join(world.home) is None
    (world.home / TOKEN_FILE).write_text("{")
    with pytest.raises(ConfigurationError, match="exo join TOKEN"):
        read_pending_join(world.home)


async def test_every_command_is_in_the_audit_log_with_who_and_what_came_of_it(
    ruled: World, admin: httpx.AsyncClient
) -> None:
    made = parse(KeyMade, (await admin.post("/keys", json={"scopes": ["operate"]})).content)
    headers = {"x-api-key": made.key}
    async with client_of(ruled.app(), address="192.0.2.7", headers=headers) as operator:
        assert (await operator.get("/instance/previews", params={"model_id": "toy"})).status_code == 200
        assert (await operator.post("/instance", json={"model_id": "nothing"})).status_code == 404
        assert (await operator.delete("/instance/i")).status_code == 200
    lines = parse(AuditList, (await admin.get("/audit")).content).entries
    assert [(line.who, line.address, line.what, line.result, line.code) for line in lines] == [
        ("loopback", "127.0.0.1", "CreateKey", "done", None),
        (f"key {made.key_id}", "192.0.2.7", "PlaceInstance", "refused", "model_not_found"),
        (f"key {made.key_id}", "192.0.2.7", "DeleteInstance", "done", None),
    ]
    assert lines[0].details == {
        "key_id": made.key_id, "name": "", "scopes": ["operate"], "lifetime_s": None
    }  # fmt: skip
    assert lines[2].details == {"instance_id": "i"} and lines[2].index == ruled.coordinator.state.index
    found = parse(AuditVerification, (await admin.get("/audit/verification")).content)
    assert (found.is_whole, found.line_count, found.problems) == (True, 3, [])
    newer = parse(AuditList, (await admin.get("/audit", params={"after": 2})).content).entries
    assert [line.seq for line in newer] == [3]


async def test_refused_requests_are_counted_and_written_down_once_a_minute(world: World) -> None:
    app = world.app()
    async with client_of(app, address="192.0.2.7") as stranger:
        for _ in range(5):
            assert (await stranger.get("/state")).status_code == 403
    async with client_of(app, address="192.0.2.8") as stranger:
        assert (await stranger.get("/state")).status_code == 403
    async with client_of(app) as http:
        lines = parse(AuditList, (await http.get("/audit")).content).entries
        metrics = (await http.get("/metrics")).text
    assert [(line.who, line.address, line.code) for line in lines] == [
        ("nobody", "192.0.2.7", "no_keys"),
        ("nobody", "192.0.2.8", "no_keys"),
    ]
    assert lines[1].details == {"method": "GET", "path": "/state", "left_out_before": 4}
    assert 'exo_authentication_failures_total{reason="no_keys"} 6.0' in metrics


def test_no_route_reaches_the_master_past_the_audit_log() -> None:
    folder = Path(exo.api.__file__ or "").parent if exo.api.__file__ else Path(next(iter(exo.api.__path__)))
    sources = {path.name: path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}
    past = [name for name, text in sources.items() if "coordinator.send(" in text]
    assert past == ["access_desk.py"]


async def test_no_secret_is_in_anything_but_the_answer_that_made_it(ruled: World) -> None:
    """Make a token and a key, use and guess them, then look for them and for what they are checked with."""
    logged: list[str] = []
    sink = logger.add(logged.append, level=0)
    seen: list[str] = []
    async with served(ruled) as server, httpx.AsyncClient(base_url=server.url, timeout=10) as http:
        token = (await http.post("/tokens", json={})).json()["token"]
        made = (await http.post("/keys", json={"scopes": ["admin"]})).json()
        bearer = {"authorization": f"Bearer {made['key']}"}
        await http.post("/access/join", json={"token": token})
        wrong = {"authorization": f"Bearer exo-{made['key_id']}-{'0' * 64}"}
        seen.append((await http.get("/state", headers=wrong)).text)
        seen.append((await http.post("/keys", json={"scopes": [made["key"]]}, headers=bearer)).text)
        paths = ["/state", "/tokens", "/keys", "/nodes", "/audit", "/metrics", "/peers", "/openapi.json"]
        seen += [(await http.get(path, headers=bearer)).text for path in paths]
        async with http.stream("GET", "/events", params={"after": 0}, headers=bearer) as response:
            with anyio.fail_after(10):
                async for chunk in response.aiter_text():
                    seen.append(chunk)
                    if "KeyCreated" in "".join(seen):
                        break
    logger.remove(sink)
    access = ruled.coordinator.state.access
    (stored_token,) = access.tokens.values()
    (stored_key,) = access.keys.values()
    secrets = {
        "token": parse_token(token).reveal().rpartition(".")[2],
        "key": made["key"].rpartition("-")[2],
        "verifier": stored_token.verifier,
        "hash": stored_key.hash,
    }
    audit = "".join(path.read_text() for path in (ruled.home / "audit").iterdir())
    everything = {"answers": "".join(seen), "log": "".join(logged), "audit": audit}
    assert "TokenCreated" in everything["answers"] and "CreateToken" in audit
    for name, secret in secrets.items():
        assert len(secret) >= 32
        for where, text in everything.items():
            assert secret not in text, f"the {name} is in the {where}"
    events = [one.event for one in ruled.coordinator.history if isinstance(one, LogEntry)]
    assert secrets["token"] not in json.dumps([str(event) for event in events])
    assert secrets["key"] not in json.dumps([str(event) for event in events])


async def test_events_are_shown_whole_but_for_what_guesses_are_checked_with(ruled: World) -> None:
    async with client_of(ruled.app()) as http:
        await http.post("/tokens", json={})
        await http.post("/keys", json={"scopes": ["read"]})
    for item in ruled.coordinator.history:
        shown = without_secrets(item)
        assert isinstance(shown, LogEntry) and isinstance(item, LogEntry)
        assert (shown.index, type(shown.event)) == (item.index, type(item.event))
        assert getattr(shown.event, "verifier", "") == "" and getattr(shown.event, "hash", "") == ""
    assert TOKEN_ID not in ruled.coordinator.state.access.tokens
