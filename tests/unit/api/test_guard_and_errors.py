"""What no route sees: foreign hosts, bodies that are no JSON or too large; and errors in the dialect of the path."""

import json
from collections.abc import AsyncIterator

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.api.guard import BODY_BYTES_MAX, host_name
from exo.api.schemas.problems import OpenAIError, Problem
from support.api_world import World, client_of

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["toy", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["model", "model_id", "messages", "role", "content", "stop", "prompt", "stream", "seed"]
            )
            | st.text(max_size=5),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:52415", "[::1]:52415", "LOCALHOST:1", "0.0.0.0:1"])
async def test_names_of_this_machine_are_answered(http: httpx.AsyncClient, host: str) -> None:
    assert (await http.get("/healthz", headers={"host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "testserver",
        "localhost.evil.example:52415",
        "127.0.0.1.evil.example",
        "",
        "192.168.0.1",
    ],
)
async def test_other_names_are_refused(http: httpx.AsyncClient, host: str) -> None:
    response = await http.get("/state", headers={"host": host})
    assert response.status_code == 421
    assert Problem.model_validate_json(response.content).code == "host_not_trusted"


@given(name=st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True), port=st.integers(0, 65535))
def test_a_host_header_is_a_name_with_or_without_a_port(name: str, port: int) -> None:
    assert host_name(name.upper()) == name
    assert host_name(f"{name}:{port}") == name


@pytest.mark.parametrize("path", ["/instance", "/v1/chat/completions"])
@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_a_body_must_be_declared_as_json(http: httpx.AsyncClient, path: str, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = await http.post(path, content=b'{"model_id": "toy"}', headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.text


async def test_no_page_of_another_origin_may_read_or_write(http: httpx.AsyncClient) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    for answer in (
        await http.options("/instance", headers=headers),
        await http.get("/state", headers=headers),
    ):
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


LINK = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.mark.parametrize("path", ["/state", "/instance/previews?model_id=toy", "/v1/models", "/", "/nowhere"])
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
        {"origin": "null"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:1", "host": "localhost:2"},
    ],
)
async def test_what_a_page_of_another_site_sends_is_refused(
    world: World, http: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    response = await http.get(path, headers=headers)
    assert response.status_code == 403
    if path.startswith("/v1"):
        assert OpenAIError.model_validate_json(response.content).error.code == "cross_site"
    else:
        assert Problem.model_validate_json(response.content).code == "cross_site"


async def test_a_form_of_another_site_is_refused_even_as_a_navigation(http: httpx.AsyncClient) -> None:
    headers = {"sec-fetch-site": "cross-site", "content-type": "application/json"} | LINK
    assert (await http.post("/instance", content=b"{}", headers=headers)).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "none"} | LINK,
        {"sec-fetch-site": "cross-site"} | LINK,
        {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"origin": "http://localhost:9", "host": "localhost:9", "sec-fetch-site": "same-origin"},
        {"origin": "http://[::1]:9", "host": "[::1]:9"},
    ],
)
async def test_the_page_itself_links_and_programs_are_answered(
    http: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    assert (await http.get("/state", headers=headers)).status_code == 200


async def test_a_body_has_a_limit_whether_or_not_it_tells_its_length(http: httpx.AsyncClient) -> None:
    kind = {"content-type": "application/json"}
    declared = await http.post("/instance", content=b" " * (BODY_BYTES_MAX + 1), headers=kind)
    assert declared.status_code == 413

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(BODY_BYTES_MAX // 2**20 + 1):
            yield b" " * 2**20

    for path, shape in (("/instance", Problem), ("/v1/chat/completions", OpenAIError)):
        streamed = await http.post(path, content=parts(), headers=kind)
        assert "content-length" not in streamed.request.headers
        assert streamed.status_code == 413
        assert shape.model_validate_json(streamed.content)


async def test_malformed_json_is_told_in_the_dialect_of_the_path(http: httpx.AsyncClient) -> None:
    kind = {"content-type": "application/json"}
    own = await http.post("/instance", content=b'{"model_id": ', headers=kind)
    assert own.status_code == 422
    assert own.headers["content-type"] == "application/problem+json"
    assert "JSON" in Problem.model_validate_json(own.content).detail
    foreign = await http.post("/v1/chat/completions", content=b'{"model": ', headers=kind)
    assert foreign.status_code == 400
    error = OpenAIError.model_validate_json(foreign.content).error
    assert (error.type, error.code) == ("invalid_request_error", "invalid_request")


async def test_unknown_paths_and_methods(http: httpx.AsyncClient) -> None:
    own = await http.get("/nowhere")
    assert (own.status_code, Problem.model_validate_json(own.content).code) == (404, "not_found")
    foreign = await http.get("/v1/nowhere")
    assert OpenAIError.model_validate_json(foreign.content).error.code == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/state", "GET"),
        ("PUT", "/instance", "GET, POST"),
        ("PATCH", "/instance/i", "DELETE, GET"),
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/models/toy", "GET"),
    ],
)
async def test_a_wrong_method_is_told_with_the_right_ones(
    http: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    response = await http.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    if path.startswith("/v1"):
        assert OpenAIError.model_validate_json(response.content).error.code == "method_not_allowed"
    else:
        assert Problem.model_validate_json(response.content).code == "method_not_allowed"


async def test_probes_may_ask_for_the_head_only(http: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        assert (await http.head(path)).status_code == 200


async def test_a_fault_inside_is_a_500_without_its_innards(world: World, http: httpx.AsyncClient) -> None:
    async def fail(_: object) -> None:
        raise RuntimeError("secret innards")

    world.coordinator.set_command_handler(fail)  # type: ignore[arg-type]
    response = await http.post("/instance", json={"model_id": "toy"})
    assert response.status_code == 500
    assert Problem.model_validate_json(response.content).code == "internal_error"
    assert "innards" not in response.text


@pytest.mark.parametrize("path", ["/instance", "/v1/chat/completions", "/v1/completions"])
async def test_no_body_makes_the_server_fail(world: World, path: str) -> None:
    async with client_of(world.app()) as http:
        kind = {"content-type": "application/json"}
        bodies = [b"", b"\xff\xfe", b"[" * 100_000, b"1e999999", b'"\\ud800"', b'{"\\ud800": 1}', b"nul"]
        for body in bodies:
            response = await http.post(path, content=body, headers=kind)
            assert response.status_code in (400, 422), (body[:20], response.text)

        async def post(body: object) -> httpx.Response:
            return await http.post(path, content=json.dumps(body), headers=kind)

        @given(body=JSON_VALUES)
        def check(body: object) -> None:
            response = anyio.from_thread.run(post, body)
            assert response.status_code in (200, 201, 400, 404, 422, 503), response.text
            if response.status_code >= 400:
                shape = OpenAIError if path.startswith("/v1") else Problem
                assert shape.model_validate_json(response.content)

        await anyio.to_thread.run_sync(check)
