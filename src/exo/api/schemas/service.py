"""Shapes of the service's own routes: health, readiness, and the messages of the event stream."""

from typing import Any

from exo.api.schemas.base import Shape


class Health(Shape):
    """The process answers."""

    status: str
    node_id: str
    exo_version: str
    started_at: str
    """ISO 8601, UTC."""


class Readiness(Shape):
    """This node is a member of a cluster whose state it knows."""

    status: str
    node_id: str
    index: int
    master_node_id: str | None


class DecisionMessage(Shape):
    """Data of an `event: decision`: one committed entry of the log."""

    index: int
    term: int
    event_id: str
    cause_id: str
    origin: str
    seq: int
    at: str
    event: dict[str, Any]
    """`type` says which event it is, such as `InstanceCreated`."""
    more: int
    """How many decisions follow that were made together with it."""


class TelemetryMessage(Shape):
    """Data of an `event: telemetry`: one node's latest."""

    node_id: str
    boot_id: str
    seq: int
    events: list[dict[str, Any]]
    """`type` says which event it is, such as `DeviceGPUStateUpdated`."""
