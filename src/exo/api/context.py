"""What the routes work with: given once to `create_app`, reached through one dependency."""

import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, cast

import anyio
import msgspec
from fastapi import Depends, Request

from exo.api.access_audit import AuditLog
from exo.api.access_desk import CommandDesk
from exo.api.access_gate import AccessGate
from exo.api.access_keys import PlainKey
from exo.api.access_meter import KeyMeter, TellUsage
from exo.api.generation import TokenClient
from exo.api.metrics import MetricsOptions, ServiceMetrics
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


class NodeActions(msgspec.Struct, frozen=True, kw_only=True):
    """What the API may ask of its own node. None: this node cannot do it."""

    join_wanted: Callable[[], None] | None = None
    """`<home>/keys/token` was written: use it now."""
    note_busy: Callable[[bool], None] | None = None
    """Whether clients of this node are waiting for tokens now."""
    tell_key_usage: TellUsage | None = None
    """What was done here with keys that have a quota: tell the other nodes."""
    refused_data_connections: Callable[[], int] = lambda: 0
    """How many connections to the data plane were not let in since the start."""


class ApiContext:
    """Everything the routes use; they reach master and workers through the coordinator only."""

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        generation_client: TokenClient,
        settings: Settings,
        started: StartInfo,
        actions: NodeActions | None = None,
        owner_key: PlainKey | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.coordinator = coordinator
        self.generation_client = generation_client
        self.settings = settings
        self.started = started
        self.state_cache = StateCache(started.node_id)
        self.requests_in_flight: Counter[InstanceId] = Counter()
        """Generations that this node has running, by instance."""
        self.actions = actions or NodeActions()
        self.metrics = ServiceMetrics(
            coordinator,
            self.requests_in_flight,
            MetricsOptions.from_environment(),
            refused_data_connections=self.actions.refused_data_connections,
        )
        self.now_s = now_s
        self.audit = AuditLog(settings.home / "audit", lambda: utc_text(now_s()))
        self.desk = CommandDesk(coordinator, self.audit, self.metrics)
        self.gate = AccessGate(
            coordinator, is_key_required=settings.is_key_required, owner_key=owner_key, now_s=now_s
        )
        self.meter = KeyMeter(coordinator, self.actions.tell_key_usage, now_s=now_s)
        self.closing = anyio.Event()
        """Set when the server stops: endless answers end."""


def utc_text(unix_s: float) -> str:
    """Return a time as people and JSON read it: ISO 8601 in UTC."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def get_context(request: Request) -> ApiContext:
    """Return the context that the application was made with. A coroutine: anything else is run in a thread."""
    return cast(ApiContext, request.app.state.context)


Context = Annotated[ApiContext, Depends(get_context)]
