"""`GET /metrics`: what Prometheus reads. Unknown values are absent, never zero."""

from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from exo.cluster.coordinator import Coordinator
from exo.shared.serving import instance_status
from exo.shared.types.devices import DeviceGPUState
from exo.shared.types.ids import InstanceId
from exo.shared.types.state import State

# Samples of when each counter was made double their number and say nothing here.
disable_created_metrics()

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_DEVICE_LABELS = ("gpu_id", "node", "vendor", "name")
_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServiceMetrics:
    """This node's counters, and the cluster's state as gauges, in a registry of their own."""

    def __init__(self, coordinator: Coordinator, in_flight: dict[InstanceId, int]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(StateCollector(coordinator))
        self.requests = Counter(
            "exo_requests",
            "Generation requests that ended on this node, by route and HTTP status (499: the client left).",
            ("route", "status"),
            registry=self._registry,
        )
        self.tokens_generated = Counter(
            "exo_tokens_generated",
            "Tokens that this node passed to clients.",
            ("model",),
            registry=self._registry,
        )
        self.time_to_first_token_s = Histogram(
            "exo_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            ("model",),
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=self._registry,
        )
        self.authentication_failures = Counter(
            "exo_authentication_failures",
            "Requests that this node did not let in, by reason: a missing or wrong key, a scope it does not have.",
            ("reason",),
            registry=self._registry,
        )
        self.enrolments_refused = Counter(
            "exo_enrolments_refused",
            "Nodes that asked this one to join and were refused, by reason.",
            ("reason",),
            registry=self._registry,
        )

        active = Gauge(
            "exo_requests_active",
            "Generations that this node has running for clients.",
            registry=self._registry,
        )
        active.set_function(lambda: sum(in_flight.values()))

    def render(self) -> bytes:
        """Return the text exposition format."""
        return generate_latest(self._registry)


class StateCollector(Collector):
    """Reads the state when Prometheus asks."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges of the present state."""
        state = self._coordinator.state
        yield from _device_metrics(state)
        index = GaugeMetricFamily("exo_events_index", "Index of the last decision folded in on this node.")
        index.add_metric([], state.index)
        yield index
        instances = GaugeMetricFamily("exo_instances", "Placed instances by status.", labels=("status",))
        counts = {"pending": 0, "loading": 0, "ready": 0, "failed": 0}
        for instance in state.instances.values():
            counts[instance_status(state, instance)[0]] += 1
        for status, count in counts.items():
            instances.add_metric([status], count)
        yield instances
        nodes = GaugeMetricFamily("exo_nodes", "Members of the cluster.", labels=("connected",))
        connected = sum(1 for node in state.nodes.values() if node.is_connected)
        nodes.add_metric(["true"], connected)
        nodes.add_metric(["false"], len(state.nodes) - connected)
        yield nodes


def _device_metrics(state: State) -> Iterable[Metric]:
    used = GaugeMetricFamily("gpu_memory_used_bytes", "Memory in use.", labels=_DEVICE_LABELS)
    available = GaugeMetricFamily("gpu_memory_available_bytes", "Memory left.", labels=_DEVICE_LABELS)
    utilization = GaugeMetricFamily("gpu_utilization_percent", "Compute in use.", labels=_DEVICE_LABELS)
    temperature = GaugeMetricFamily("gpu_temperature_celsius", "Temperature.", labels=_DEVICE_LABELS)
    health = GaugeMetricFamily(
        "gpu_health_status", "1 while the device is not failed, else 0.", labels=_DEVICE_LABELS
    )
    for node_id, node in sorted(state.nodes.items()):
        live = state.live.get(node_id)
        if live is None or not node.is_connected:
            continue
        for index, device in enumerate(node.identity.devices):
            now: DeviceGPUState | None = live.devices.get(device.device_id)
            if now is None:
                continue
            labels = [str(index), node_id, device.vendor, device.name]
            rows = (
                (used, now.memory_used_bytes),
                (available, now.memory_free_bytes),
                (utilization, now.compute_utilization_percent),
                (temperature, now.thermal_temperature_c),
                (health, 0 if now.health == "failed" else 1),
            )
            for family, value in rows:
                if value is not None:
                    family.add_metric(labels, value)
    yield from (used, available, utilization, temperature, health)
