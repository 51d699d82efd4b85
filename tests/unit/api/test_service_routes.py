"""Health, readiness, metrics, the documentation and the dashboard's files."""

import json
from html.parser import HTMLParser
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from exo.api.app import routes_only
from exo.api.schemas.service import Health, Readiness
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.events import DeviceGPUStateUpdated, NodeDisconnected
from exo.shared.types.ids import DeviceId, NodeId
from exo.shared.types.state import State
from support.api_world import World, client_of, parse
from support.states import fold

Sample = tuple[str, tuple[tuple[str, str], ...]]


async def test_alive_at_once_and_ready_with_a_state(world: World, http: httpx.AsyncClient) -> None:
    assert parse(Health, (await http.get("/healthz")).content).node_id == "a"
    ready = parse(Readiness, (await http.get("/readyz")).content)
    assert ready.index == world.coordinator.state.index
    world.coordinator.set_state(State())
    assert (await http.get("/healthz")).status_code == 200
    response = await http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["code"] == "not_ready"


def samples(text: str) -> dict[Sample, float]:
    """Read Prometheus's text format with its own reader."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_say_what_is_known_and_nothing_else(world: World, http: httpx.AsyncClient) -> None:
    reading = DeviceGPUState(
        device_id=DeviceId("a/cpu:0"),
        node_id=NodeId("a"),
        memory_used_bytes=2,
        memory_total_bytes=8,
        thermal_temperature_c=50.0,
        health="failed",
        last_update="2026-01-01T00:00:00Z",
    )
    world.coordinator.publish([DeviceGPUStateUpdated(state=reading)])
    chat = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
    await http.post("/v1/chat/completions", json=chat)
    await http.post("/v1/chat/completions", json=chat | {"stream": True})
    await http.post("/v1/chat/completions", json=chat | {"model": "toi"})
    response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(response.text)
    labels = (("gpu_id", "0"), ("name", "Test CPU"), ("node", "a"), ("vendor", "intel"))
    assert found["gpu_memory_used_bytes", labels] == 2
    assert found["gpu_memory_available_bytes", labels] == 6
    assert found["gpu_temperature_celsius", labels] == 50.0
    assert found["gpu_health_status", labels] == 0
    names = {name for name, _ in found}
    assert not [name for name in names if name.endswith("_created")]
    assert "gpu_utilization_percent" not in names
    assert len([name for name, _ in found if name == "gpu_memory_used_bytes"]) == 1
    assert found["exo_events_index", ()] == world.coordinator.state.index
    assert found["exo_instances", (("status", "ready"),)] == 1
    assert found["exo_instances", (("status", "failed"),)] == 0
    route = ("route", "/v1/chat/completions")
    assert found["exo_requests_total", (route, ("status", "200"))] == 2
    assert found["exo_requests_total", (route, ("status", "404"))] == 1
    assert found["exo_tokens_generated_total", (("model", "toy"),)] == 8
    assert found["exo_time_to_first_token_seconds_count", (("model", "toy"),)] == 2
    assert not [1 for name, labels in found if ("model", "toi") in labels]


async def test_metrics_drop_devices_of_nodes_that_are_away(world: World, http: httpx.AsyncClient) -> None:
    reading = DeviceGPUState(
        device_id=DeviceId("a/cpu:0"), node_id=NodeId("a"), last_update="2026-01-01T00:00:00Z"
    )
    world.coordinator.publish([DeviceGPUStateUpdated(state=reading)])
    assert "gpu_health_status{" in (await http.get("/metrics")).text
    world.coordinator.set_state(
        fold(world.coordinator.state, NodeDisconnected(node_id=NodeId("a"), reason="off"))
    )
    assert "gpu_health_status{" not in (await http.get("/metrics")).text


async def test_the_documentation_is_complete(http: httpx.AsyncClient) -> None:
    document = (await http.get("/openapi.json")).json()
    assert document == routes_only().openapi()
    operations = [one for path in document["paths"].values() for one in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids)
    assert all(operation["tags"] and operation["description"] for operation in operations)
    text = str(document)
    for name in document["components"]["schemas"]:
        assert f"#/components/schemas/{name}'" in text, f"{name} is described but used nowhere"
    assert "HTTPValidationError" not in text


async def test_the_documentations_page_names_everything_and_loads_nothing(http: httpx.AsyncClient) -> None:
    response = await http.get("/docs")
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    document = routes_only().openapi()
    page = _Page()
    page.feed(response.text)
    page.close()
    operations = {one["operationId"] for path in document["paths"].values() for one in path.values()}
    assert page.ids == operations | set(document["components"]["schemas"])
    inner = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert inner <= page.ids
    assert {link for link in page.links if not link.startswith("#")} == {"openapi.json"}
    assert not page.sources
    for words in (
        "max_completion_tokens",
        "layer_split",
        "ram_total",
        "curl -X POST",
        "At most four strings",
    ):
        assert words in response.text


class _Page(HTMLParser):
    """What a page defines, links to and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.sources: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            found = {"id": self.ids, "href": self.links, "src": self.sources}.get(name)
            if found is not None and value is not None:
                found.add(value)


def test_the_dashboards_copy_of_the_documentation_is_up_to_date() -> None:
    copy = Path(__file__).parents[3] / "dashboard" / "openapi.json"
    assert json.loads(copy.read_text(encoding="utf-8")) == routes_only().openapi(), (
        "run: python -m exo.api.openapi > dashboard/openapi.json"
    )


async def test_without_a_dashboard_the_page_says_how_to_build_it(http: httpx.AsyncClient) -> None:
    response = await http.get("/", headers={"accept": "text/html"})
    assert response.status_code == 200
    assert "npm ci" in response.text


async def test_the_dashboard_appears_once_it_is_built(world: World) -> None:
    built = world.home / "dashboard"
    async with client_of(world.app()) as http:
        assert "npm ci" in (await http.get("/")).text
        (built / "assets").mkdir(parents=True)
        (built / "index.html").write_text("<p>the page</p>")
        (built / "assets" / "index-abc.js").write_text("1")
        (world.home / "secret.txt").write_text("hidden words")
        page = await http.get("/")
        assert page.text == "<p>the page</p>"
        assert page.headers["cache-control"] == "no-cache"
        assert "default-src 'self'" in page.headers["content-security-policy"]
        script = await http.get("/assets/index-abc.js")
        assert "javascript" in script.headers["content-type"]
        assert "immutable" in script.headers["cache-control"]
        inner = await http.get("/instances/i", headers={"accept": "text/html"})
        assert inner.text == "<p>the page</p>"
        assert (await http.get("/assets/missing.js", headers={"accept": "*/*"})).status_code == 404
        assert (await http.get("/instances/i", headers={"accept": "application/json"})).status_code == 404
        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/assets/..%2f..%2f..%2fsecret.txt"):
            assert "hidden words" not in (await http.get(path)).text
        assert (await http.get("/state")).json()["index"] == world.coordinator.state.index
