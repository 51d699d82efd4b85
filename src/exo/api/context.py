"""What the routes work with: given once to `create_app`, reached through one dependency."""

from collections import Counter
from typing import Annotated, cast

import anyio
import msgspec
from fastapi import Depends, Request

from exo.api.generation import TokenClient
from exo.api.metrics import ServiceMetrics
from exo.api.present_state import StateCache
from exo.cluster.coordinator import Coordinator
from exo.settings import Settings
from exo.shared.types.ids import InstanceId, NodeId


class StartInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of this process from its start on."""

    node_id: NodeId
    exo_version: str
    started_at: str
    """ISO 8601, UTC."""


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
