"""The application over a coordinator in memory and a scripted data plane, with or without a real port."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import anyio
import httpx
from fastapi import FastAPI
from pydantic import BaseModel

from exo.api.app import create_app
from exo.api.context import ApiContext, NodeActions, StartInfo
from exo.api.server import ApiServer
from exo.master.loop import Master
from exo.master.solver import Solver
from exo.settings import Settings
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from exo.shared.types.state import State
from support.access_stories import NOW_S, SigningAuthority
from support.coordinator import MemoryCoordinator
from support.scripted_generation import ScriptedClient
from support.states import card, cluster, identity
from support.stories import placed, stage

STAGE_ADDRESS = HostPort("127.0.0.1", 7)
INSTANCE_ID = InstanceId("i")

Model = TypeVar("Model", bound=BaseModel)


def unplaced_state() -> State:
    """Two nodes; `a` has a model that can be loaded and one that cannot."""
    models = (card("toy"), card("org/broken", problem="model.safetensors is truncated"))
    return cluster(identity("a", models=models), identity("b", models=(card("toy"),)))


def ready_state() -> State:
    """The same with the model `toy` ready as the instance `i`."""
    return stage(placed(unplaced_state()), 0, "ready", address=STAGE_ADDRESS)


class World:
    """An application and what stands behind it."""

    def __init__(self, state: State, home: Path) -> None:
        self.coordinator = MemoryCoordinator(NodeId("a"), state)
        self.client = ScriptedClient()
        self.home = home
        self.is_auto_place_enabled = True
        self.is_key_required = False
        self.actions = NodeActions()

    def app(self) -> FastAPI:
        """Make the application with what is set up by now."""
        return create_app(
            coordinator=self.coordinator,
            generation_client=self.client,
            settings=Settings(
                home=self.home,
                is_auto_place_enabled=self.is_auto_place_enabled,
                is_key_required=self.is_key_required,
            ),
            started=StartInfo(node_id=NodeId("a"), exo_version="0", started_at="2026-01-01T00:00:00Z"),
            actions=self.actions,
            dashboard_dir=self.home / "dashboard",
        )


def client_of(
    app: FastAPI, *, address: str = "127.0.0.1", headers: dict[str, str] | None = None
) -> httpx.AsyncClient:
    """Return a client of an application, without a network; answers arrive whole. It seems to be at `address`."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(address, 40000))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers)


def rule(world: "World", *, now_s: float = NOW_S) -> None:
    """Have a real master carry commands out, with an authority of its own."""
    Master(world.coordinator, Solver(), lambda: "id", authority=SigningAuthority(), now_s=lambda: now_s)


class Served:
    """An application on a real port of this machine."""

    def __init__(self, url: str, context: ApiContext, server: ApiServer) -> None:
        self.url = url
        self.context = context
        self.server = server
        self.ended = anyio.Event()


@asynccontextmanager
async def served(world: World) -> AsyncIterator[Served]:
    """Serve an application on a free port until the end of the block."""
    app = world.app()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    server = ApiServer(app, app.state.context)
    found = Served(f"http://127.0.0.1:{bound.getsockname()[1]}", app.state.context, server)
    started = anyio.Event()

    async def run() -> None:
        await server.serve(bound, started.set)
        found.ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await started.wait()
        try:
            yield found
        finally:
            server.stop()


def parse(model: type[Model], body: bytes) -> Model:
    """Read an answer as its documented shape: every field there, none besides."""
    found = model.model_validate_json(body, strict=True, extra="forbid")
    missing = set(model.model_fields) - found.model_fields_set
    assert not missing, f"fields that only have a default: {missing}"
    return found


async def until(condition: Callable[[], object], *, timeout_s: float = 10) -> None:
    """Return once the condition holds."""
    with anyio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110, what is waited for has no event of its own
            await anyio.sleep(0.005)
