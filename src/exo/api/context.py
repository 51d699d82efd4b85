"""What the routes work with: given once to `create_app`, reached through one dependency."""

from collections import Counter
from typing import Annotated, cast

import anyio
import msgspec
from fastapi import Depends, Request

from exo.api import present
from exo.api.generation import TokenClient
from exo.api.metrics import ServiceMetrics
from exo.cluster.coordinator import Coordinator
from exo.settings import Settings
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.state import State


class StartInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of this process from its start on."""

    node_id: NodeId
    exo_version: str
    started_at: str
    """ISO 8601, UTC."""


class StateCache:
    """The newest state as bytes: encoded once per state, however many ask for it."""

    def __init__(self, node_id: NodeId) -> None:
        self._node_id = node_id
        self._state: State | None = None
        self._master: NodeId | None = None
        self._encoded = b""

    def encode(self, state: State, master: NodeId | None) -> bytes:
        """Return the JSON of `GET /state`. States are immutable, so the same object has the same bytes.

        Args:
            state: The newest state.
            master: Who leads, as far as this node can reach anyone; None without a master.
        """
        if state is not self._state or master != self._master:
            self._encoded = msgspec.json.encode(present.cluster_state(state, self._node_id, master))
            self._state, self._master = state, master
        return self._encoded


class ApiContext:
    """Everything the routes use; they reach master and workers through the coordinator only."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        generation_client: TokenClient,
        settings: Settings,
        started: StartInfo,
    ) -> None:
        self.coordinator = coordinator
        self.generation_client = generation_client
        self.settings = settings
        self.started = started
        self.state_cache = StateCache(started.node_id)
        self.requests_in_flight: Counter[InstanceId] = Counter()
        """Generations that this node has running, by instance."""
        self.metrics = ServiceMetrics(coordinator, self.requests_in_flight)
        self.closing = anyio.Event()
        """Set when the server stops: endless answers end."""


async def get_context(request: Request) -> ApiContext:
    """Return the context that the application was made with. A coroutine: anything else is run in a thread."""
    return cast(ApiContext, request.app.state.context)


Context = Annotated[ApiContext, Depends(get_context)]
