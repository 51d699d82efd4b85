"""The event stream: decisions with their index, telemetry beside, resuming, and its ends."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import pytest

from exo.api.routes import events as events_module
from exo.api.schemas.service import DecisionMessage, TelemetryMessage
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.events import DeviceGPUStateUpdated, LogEntry, NodeDisconnected, TelemetryFrame
from exo.shared.types.ids import DeviceId, NodeId
from support.api_world import World, parse, served

Message = tuple[str, str, dict[str, Any]]


async def messages(response: httpx.Response) -> AsyncIterator[Message]:
    """Yield (event, id, data) as they come; comments as the event `comment`."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line.startswith(":"):
            yield "comment", line, {}
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
            fields = {}


async def gone(world: World) -> None:
    await world.coordinator.propose([NodeDisconnected(node_id=NodeId("b"), reason="off")], cause_id="test")


def heat(world: World) -> None:
    reading = DeviceGPUState(
        device_id=DeviceId("a/cpu:0"),
        node_id=NodeId("a"),
        thermal_temperature_c=50.0,
        last_update="2026-01-01T00:00:00Z",
    )
    world.coordinator.publish([DeviceGPUStateUpdated(state=reading)])


async def test_decisions_and_telemetry_arrive_as_they_happen(world: World) -> None:
    async with (
        served(world) as server,
        httpx.AsyncClient(timeout=10) as http,
        http.stream("GET", f"{server.url}/events") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        stream = messages(response)
        assert (await anext(stream))[0] == "comment"
        await anyio.wait_all_tasks_blocked()
        await gone(world)
        kind, number, data = await anext(stream)
        assert (kind, number) == ("decision", str(world.coordinator.state.index))
        decision = parse(DecisionMessage, json.dumps(data).encode())
        assert decision.event == {"type": "NodeDisconnected", "node_id": "b", "reason": "off"}
        heat(world)
        kind, number, data = await anext(stream)
        assert (kind, number) == ("telemetry", "")
        telemetry = parse(TelemetryMessage, json.dumps(data).encode())
        assert telemetry.events[0]["type"] == "DeviceGPUStateUpdated"
        assert telemetry.events[0]["state"]["thermal_temperature_c"] == 50.0


@pytest.mark.parametrize("by_header", [True, False])
async def test_a_reader_that_comes_back_goes_on_where_it_was(world: World, by_header: bool) -> None:
    start = world.coordinator.state.index
    for _ in range(3):
        await gone(world)
    async with served(world) as server, httpx.AsyncClient(timeout=10) as http:
        headers = {"last-event-id": str(start + 1)} if by_header else {}
        params = {} if by_header else {"after": start + 1}
        async with http.stream("GET", f"{server.url}/events", headers=headers, params=params) as response:
            stream = messages(response)
            assert (await anext(stream))[0] == "comment"
            seen = [(await anext(stream))[1] for _ in range(2)]
    assert seen == [str(start + 2), str(start + 3)]


async def test_an_id_that_is_no_index_is_refused(world: World) -> None:
    async with served(world) as server, httpx.AsyncClient(timeout=10) as http:
        response = await http.get(f"{server.url}/events", headers={"last-event-id": "soon"})
    assert response.status_code == 422


async def test_a_quiet_stream_is_kept_alive(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "KEEP_ALIVE_S", 0.02)
    async with (
        served(world) as server,
        httpx.AsyncClient(timeout=10) as http,
        http.stream("GET", f"{server.url}/events") as response,
    ):
        stream = messages(response)
        seen = [(await anext(stream))[1] for _ in range(3)]
    assert seen == [": connected", ": keep-alive", ": keep-alive"]


async def test_the_stream_ends_cleanly_when_the_server_stops(world: World) -> None:
    async with (
        served(world) as server,
        httpx.AsyncClient(timeout=10) as http,
        http.stream("GET", f"{server.url}/events") as response,
    ):
        stream = messages(response)
        await anext(stream)
        server.server.stop()
        with anyio.fail_after(2):
            assert [message async for message in stream] == []
            await server.ended.wait()


async def test_the_stream_ends_when_the_feed_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ending(after_index: int | None = None) -> AsyncIterator[LogEntry | TelemetryFrame]:
        for entry in world.coordinator.history:
            yield entry

    await gone(world)
    monkeypatch.setattr(world.coordinator, "feed", ending)
    async with served(world) as server, httpx.AsyncClient(timeout=10) as http:
        response = await http.get(f"{server.url}/events")
    assert response.text.count("event: decision") == 1
