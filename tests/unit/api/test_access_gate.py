"""Who is answered: from where, with which key, on which route; and what those hear who are not."""

import itertools
import json

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Mount

from exo.api.access_gate import AccessGate, AccessRefused
from exo.api.access_keys import PlainKey, create_key, credential, find_key, parse_key
from exo.api.access_limits import FAILURES_MAX, WINDOW_S, FailureLimit, is_loopback
from exo.api.access_owner import OWNER_KEY_FILE, read_owner_key
from exo.api.access_scopes import ROUTE_SCOPES, RouteScopes, needed_scope
from exo.api.app import ROUTERS
from exo.api.schemas.problems import OpenAIError, Problem
from exo.shared.types.access import INCLUDED_SCOPES, SCOPES, KeyId, Scope
from exo.shared.types.ids import NodeId
from exo.shared.types.state import State
from support.access_stories import NOW_S, key_created
from support.api_world import World, client_of
from support.coordinator import MemoryCoordinator
from support.states import cluster, fold, identity

ELSEWHERE = "192.0.2.7"
ROUTES = [route for router in ROUTERS for route in router.routes]
OPERATIONS = sorted({(method, route.path) for route in ROUTES for method in route.methods})  # type: ignore[attr-defined]


def with_key(world: World, *scopes: Scope, expires_at_s: float | None = None) -> str:
    """Give the cluster a key with these scopes; return it."""
    key = create_key()
    event = key_created(key.secret, *scopes, key_id=key.key_id, expires_at_s=expires_at_s)
    world.coordinator.set_state(fold(world.coordinator.state, event))
    return key.reveal()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


# --- the table of scopes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_route_has_a_scope(method: str, path: str) -> None:
    assert ("GET" if method == "HEAD" else method, path) in ROUTE_SCOPES


def test_every_scope_has_a_route_and_nothing_else_is_served(world: World) -> None:
    outside = {("GET", "/docs"), ("GET", "/openapi.json")}
    assert set(ROUTE_SCOPES) - set(OPERATIONS) == outside
    routers = len(ROUTERS)
    others = [route for route in world.app().routes if getattr(route, "path", None) is not None]
    assert len(world.app().routes) == routers + len(others)
    assert {getattr(route, "path", "") for route in others if not isinstance(route, Mount)} == {
        "/docs",
        "/openapi.json",
    }


def test_a_route_that_is_missing_in_the_table_needs_admin() -> None:
    assert needed_scope("POST", "/brand/new") == "admin"


@given(
    method=st.sampled_from(["GET", "HEAD", "POST", "DELETE"]),
    name=st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
)
def test_a_request_needs_what_its_route_needs(method: str, name: str) -> None:
    scopes = RouteScopes(ROUTES)  # type: ignore[arg-type]
    for route in ROUTES:
        path = route.path  # type: ignore[attr-defined]
        if method in route.methods:  # type: ignore[attr-defined]
            parts = [name if part.startswith("{") else part for part in path.split("/")]
            concrete = "/".join(parts)
            first = next(
                one
                for one in ROUTES
                if one.path_regex.match(concrete) and method in one.methods  # type: ignore[attr-defined]
            )
            assert scopes.of(method, concrete) == needed_scope(method, first.path)  # type: ignore[attr-defined]


def test_scopes_include_what_they_should() -> None:
    assert INCLUDED_SCOPES["admin"] == set(SCOPES)
    assert INCLUDED_SCOPES["operate"] == {"operate", "read", "infer"}
    assert INCLUDED_SCOPES["infer"] == {"infer"} and INCLUDED_SCOPES["read"] == {"read"}


# --- from where ------------------------------------------------------------------------------------------------------


async def test_this_machine_needs_no_key_and_may_send_any_placeholder(world: World) -> None:
    async with client_of(world.app()) as http:
        for headers in ({}, bearer("sk-anything"), {"x-api-key": "none"}, {"authorization": "Basic x"}):
            assert (await http.get("/state", headers=headers)).status_code == 200
    async with client_of(world.app(), address="::1") as http:
        assert (await http.get("/state")).status_code == 200


async def test_who_comes_from_the_nodes_own_address_is_on_this_machine(world: World) -> None:
    app = world.app()
    own = httpx.ASGITransport(app=app, client=("192.0.2.1", 40000))
    async with httpx.AsyncClient(transport=own, base_url="http://192.0.2.1:52415") as http:
        assert (await http.get("/state")).status_code == 200
        assert (await http.get("/state", headers={"host": "rebound.example"})).status_code == 421
        assert (await http.get("/state", headers={"x-forwarded-for": "192.0.2.1"})).status_code == 403
    async with httpx.AsyncClient(transport=own, base_url="http://192.0.2.2:52415") as http:
        assert (await http.get("/state")).status_code == 403


@pytest.mark.parametrize("path", ["/state", "/v1/models", "/healthz", "/", "/docs", "/nowhere"])
async def test_elsewhere_nothing_is_answered_until_there_is_a_key(world: World, path: str) -> None:
    async with client_of(world.app(), address=ELSEWHERE) as http:
        response = await http.get(path, headers=bearer(create_key().reveal()))
    assert response.status_code == 403
    assert "exo key create" in response.text and "no_keys" in response.text


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded", "x-real-ip", "via"])
async def test_what_a_proxy_on_this_machine_passes_on_comes_from_elsewhere(world: World, header: str) -> None:
    async with client_of(world.app(), headers={header: ELSEWHERE}) as http:
        assert (await http.get("/state")).status_code == 403
        key = with_key(world, "read")
        assert (await http.get("/state")).status_code == 401
        assert (await http.get("/state", headers=bearer(key))).status_code == 200


async def test_with_a_key_any_name_of_the_node_will_do(world: World) -> None:
    key = with_key(world, "read")
    async with client_of(world.app(), address=ELSEWHERE, headers={"host": "basement.lan:52415"}) as http:
        missing = await http.get("/state")
        assert missing.status_code == 401
        assert missing.headers["www-authenticate"].startswith("Bearer")
        assert (await http.get("/state", headers=bearer(key))).status_code == 200
        assert (await http.get("/state", headers={"x-api-key": key})).status_code == 200
        # Pages and probes are open, so that somebody can show a key at all.
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/")).status_code == 200
        # A page of another site is refused all the same.
        foreign = bearer(key) | {"origin": "https://evil.example"}
        assert (await http.get("/state", headers=foreign)).status_code == 403
    async with client_of(world.app(), headers={"host": "basement.lan:52415"}) as http:
        assert (await http.get("/state")).status_code == 421


# --- with which key --------------------------------------------------------------------------------------------------

OPERATION_BY_SCOPE = {
    "read": ("GET", "/state"),
    "infer": ("GET", "/v1/models"),
    "operate": ("DELETE", "/instance/nowhere"),
    "admin": ("GET", "/keys"),
}


@pytest.mark.parametrize(("held", "needed"), list(itertools.product(SCOPES, SCOPES)))
@pytest.mark.parametrize("address", [ELSEWHERE, "127.0.0.1"])
async def test_a_key_does_what_its_scope_says_wherever_it_is_used(
    world: World, held: Scope, needed: Scope, address: str
) -> None:
    world.coordinator.has_master = False
    key = with_key(world, held)
    method, path = OPERATION_BY_SCOPE[needed]
    async with client_of(world.app(), address=address, headers=bearer(key)) as http:
        response = await http.request(method, path)
    if needed in INCLUDED_SCOPES[held]:
        assert response.status_code in (200, 503)
    else:
        assert response.status_code == 403
        assert f"exo key create --scope {needed}" in response.text


@pytest.mark.parametrize("path", ["/state", "/v1/models"])
async def test_refusals_speak_the_dialect_of_their_path(world: World, path: str) -> None:
    key = with_key(world, "operate")
    with_key(world, "admin")
    other = with_key(world, "infer" if path == "/state" else "read")
    async with client_of(world.app(), address=ELSEWHERE) as http:
        answers = {
            "key_missing": await http.get(path),
            "key_malformed": await http.get(path, headers=bearer("sk-anything")),
            "key_wrong": await http.get(path, headers=bearer(key[:-1] + ("0" if key[-1] != "0" else "1"))),
            "scope_missing": await http.get(path, headers=bearer(other)),
        }
    for code, response in answers.items():
        assert response.status_code == (403 if code == "scope_missing" else 401)
        if path.startswith("/v1"):
            error = OpenAIError.model_validate_json(response.content).error
            kind = "permission_error" if code == "scope_missing" else "authentication_error"
            assert (error.code, error.type) == (code, kind)
        else:
            assert Problem.model_validate_json(response.content).code == code


async def test_a_key_counts_at_once_and_until_it_is_deleted_or_runs_out() -> None:
    coordinator = MemoryCoordinator(NodeId("a"), cluster(identity("a")))
    now_s = NOW_S
    gate = AccessGate(coordinator, now_s=lambda: now_s, clock=lambda: 0.0)
    key = create_key()
    headers = bearer(key.reveal())
    created = key_created(key.secret, "read", key_id=key.key_id, expires_at_s=NOW_S + 10)
    coordinator.set_state(fold(coordinator.state, created))
    assert gate.admit("read", ELSEWHERE, headers).label == f"key {key.key_id}"
    now_s = NOW_S + 10
    with pytest.raises(AccessRefused) as ended:
        gate.admit("read", ELSEWHERE, headers)
    assert ended.value.code == "key_expired" and "2027-01-15" in ended.value.message


async def test_a_wrong_key_on_this_machine_is_told_too(world: World) -> None:
    async with client_of(world.app(), headers=bearer(create_key().reveal())) as http:
        response = await http.get("/state")
    assert (response.status_code, Problem.model_validate_json(response.content).code) == (401, "key_wrong")


async def test_ten_wrong_keys_in_a_minute_are_enough(world: World) -> None:
    right = with_key(world, "read")
    app = world.app()
    async with client_of(app, address=ELSEWHERE) as http:
        for _ in range(FAILURES_MAX):
            assert (await http.get("/state", headers=bearer(create_key().reveal()))).status_code == 401
        response = await http.get("/state", headers=bearer(right))
        assert response.status_code == 429
        assert 0 < int(response.headers["retry-after"]) <= WINDOW_S
        # Without a key nothing is guessed: the page still comes.
        assert (await http.get("/")).status_code == 200
    async with client_of(app, address="192.0.2.8", headers=bearer(right)) as http:
        assert (await http.get("/state")).status_code == 200


# --- with --require-key ----------------------------------------------------------------------------------------------


async def test_where_keys_are_required_this_machine_needs_one_and_the_owner_has_one(world: World) -> None:
    world.is_key_required = True
    app = world.app()
    owner = read_owner_key(world.home)
    assert owner is not None and (world.home / OWNER_KEY_FILE).stat().st_mode & 0o777 == 0o600
    async with client_of(app) as http:
        assert (await http.get("/state")).status_code == 401
        assert (await http.get("/state", headers=bearer("sk-anything"))).status_code == 401
        assert (await http.get("/", headers={"accept": "text/html"})).status_code == 200
        assert (await http.get("/keys", headers=bearer(owner))).status_code == 200
    with_key(world, "read")
    async with client_of(app, address=ELSEWHERE, headers=bearer(owner)) as http:
        assert (await http.get("/state")).status_code == 401
    world.app()
    assert read_owner_key(world.home) != owner


# --- parts -----------------------------------------------------------------------------------------------------------


def test_a_key_reads_back_and_hides_its_secret() -> None:
    key = create_key()
    assert parse_key(key.reveal()) == key
    assert key.secret not in repr(key) and key.secret not in str([key])
    assert len(key.secret) == 64 and key.hash != key.secret
    assert len({create_key().reveal() for _ in range(50)}) == 50


@given(text=st.text(max_size=80) | st.from_regex(r"exo-[a-z0-9]*-?[a-zA-Z0-9-]*", fullmatch=True))
def test_any_text_is_a_key_or_none(text: str) -> None:
    key = parse_key(text)
    assert key is None or (key.reveal() == text and find_key(State().access, key) is None)


@pytest.mark.parametrize(
    "text", ["exo-", "exo-a", "exo-a-", "exo--b", "sk-x", "exo-a-" + "b" * 300, "exo-ä-b"]
)
def test_what_is_no_key_is_none(text: str) -> None:
    assert parse_key(text) is None


def test_a_key_is_taken_from_either_header() -> None:
    assert credential({"authorization": "bearer  abc "}) == "abc"
    assert credential({"authorization": "Basic abc", "x-api-key": " k "}) == "k"
    assert credential({"authorization": "Bearer a", "x-api-key": "b"}) == "a"
    assert credential({}) == ""


def test_an_unknown_id_with_a_hash_of_zeros_is_not_found() -> None:
    assert find_key(State().access, PlainKey(KeyId("x"), "y")) is None


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]), st.floats(0, 30)
        ),
        max_size=60,
    )
)
def test_wrong_keys_are_counted_by_address_as_a_naive_list_would(steps: list[tuple[str, float]]) -> None:
    limit, history, now_s = FailureLimit(), [], 0.0
    for address, pause_s in steps:
        now_s += pause_s
        group = "v6" if ":" in address else address
        recent = [at for who, at in history if who == group and now_s - at < WINDOW_S]
        is_waiting = limit.wait_s(address, now_s) > 0
        assert is_waiting == (len(recent) >= FAILURES_MAX)
        if not is_waiting:
            limit.failed(address, now_s)
            history.append((group, now_s))


def test_addresses_are_not_remembered_without_end() -> None:
    limit = FailureLimit(addresses_max=3)
    for number in range(10):
        limit.failed(f"192.0.2.{number}", 0.0)
    limit.failed("somewhere", 0.0)
    assert len(limit) == 3


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False), ("::ffff:192.0.2.1", False), ("fe80::1%eth0", False), ("0.0.0.0", False),
        ("", False), ("testclient", False),
    ],
)  # fmt: skip
def test_loopback_is_this_machine_only(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


async def test_the_documentation_says_which_scope_an_operation_needs(http: httpx.AsyncClient) -> None:
    document = json.loads((await http.get("/openapi.json")).content)
    assert document["components"]["securitySchemes"].keys() == {"bearer", "x-api-key"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            template = "/v1/models/{model_id:path}" if path == "/v1/models/{model_id}" else path
            assert operation["x-exo-scope"] == ROUTE_SCOPES[method.upper(), template]
            assert ("security" in operation) == (operation["x-exo-scope"] != "open")
