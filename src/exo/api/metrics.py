"""`GET /metrics`: what Prometheus reads. Unknown values are absent, never zero."""

import os
import threading
from collections.abc import Callable, Sequence

import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from exo.api import metrics_cluster, metrics_paces
from exo.api.exposition import CONTENT_TYPE as CONTENT_TYPE
from exo.api.exposition import Family, write
from exo.api.metrics_cluster import Elections
from exo.api.metrics_devices import DeviceMetrics
from exo.cluster.coordinator import Coordinator
from exo.cluster.facts import PeerSeen
from exo.shared.types.commands import Command, Placed, PlaceInstance, Reply
from exo.shared.types.ids import InstanceId

# Samples of when each counter was made double their number and say nothing here.
disable_created_metrics()

_FIRST_TOKEN_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_REQUEST_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_PLACEMENT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class MetricsOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What is told beside the usual."""

    has_dcgm_names: bool = False
    """GPUs once more under the names of NVIDIA's dcgm-exporter, for dashboards that look for those."""

    @staticmethod
    def from_environment() -> "MetricsOptions":
        """The defaults; `EXO_DCGM_METRICS=1` adds the names of NVIDIA's exporter."""
        told = os.environ.get("EXO_DCGM_METRICS", "").strip().lower()
        return MetricsOptions(has_dcgm_names=told in {"1", "true", "yes", "on"})


class ServiceMetrics:
    """This node's counters, and the cluster's state as it is when Prometheus asks."""

    def __init__(
        self,
        coordinator: Coordinator,
        in_flight: dict[InstanceId, int],
        options: MetricsOptions | None = None,
        refused_data_connections: Callable[[], int] = lambda: 0,
    ) -> None:
        self._coordinator = coordinator
        self._refused_data_connections = refused_data_connections
        self._devices = DeviceMetrics(has_dcgm_names=(options or MetricsOptions()).has_dcgm_names)
        self._elections = Elections(coordinator.leadership)
        self._rendering = threading.Lock()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "exo_requests",
            "Generation requests that ended on this node, by route and HTTP status (499: the client left).",
            ("route", "status"),
            registry=registry,
        )
        self.request_duration_s = Histogram(
            "exo_request_duration_seconds",
            "From a generation request's arrival to its end.",
            ("route",),
            buckets=_REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.tokens_generated = Counter(
            "exo_tokens_generated",
            "Tokens that this node passed to clients.",
            ("model",),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "exo_prompt_tokens",
            "Tokens of the prompts that were accepted through this node.",
            ("model",),
            registry=registry,
        )
        self.time_to_first_token_s = Histogram(
            "exo_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            ("model",),
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.time_per_output_token_s = Histogram(
            "exo_time_per_output_token_seconds",
            "Mean time between the tokens of a request, after its first.",
            ("model",),
            buckets=_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self.requests_waiting = Gauge(
            "exo_requests_waiting",
            "Generation requests of clients that no engine has accepted yet.",
            registry=registry,
        )
        self.placement_s = Histogram(
            "exo_placement_seconds",
            "From the wish to place a model to the decision, as this node saw it.",
            ("outcome",),
            buckets=_PLACEMENT_BUCKETS_S,
            registry=registry,
        )
        self.placement_solve_s = Histogram(
            "exo_placement_solve_seconds",
            "What the solver took for placements that were asked for through this node.",
            buckets=_PLACEMENT_BUCKETS_S,
            registry=registry,
        )
        self.authentication_failures = Counter(
            "exo_authentication_failures",
            "Requests that this node did not let in, by reason: a missing or wrong key, a scope or device that is not "
            "the key's, a quota that is used up.",
            ("reason",),
            registry=registry,
        )
        self.enrolments_refused = Counter(
            "exo_enrolments_refused",
            "Nodes that asked this one to join and were refused, by reason.",
            ("reason",),
            registry=registry,
        )
        active = Gauge(
            "exo_requests_active",
            "Generations that this node has running for clients.",
            registry=registry,
        )
        # A copy: this is read in a thread.
        active.set_function(lambda: sum(tuple(in_flight.values())))

    def command_ended(self, command: Command, reply: Reply | None, duration_s: float) -> None:
        """Count a command that was sent to the master; None: it was not answered."""
        if not isinstance(command, PlaceInstance):
            return
        outcome = "unanswered" if reply is None else "placed" if isinstance(reply, Placed) else "refused"
        self.placement_s.labels(outcome).observe(duration_s)
        if isinstance(reply, Placed) and reply.is_new and reply.instance.plan.solve_ms is not None:
            self.placement_solve_s.observe(reply.instance.plan.solve_ms / 1000)

    def render(self, peers: Sequence[PeerSeen] = ()) -> bytes:
        """Return the text exposition format. Takes a while in a large cluster: call it in a thread.

        Args:
            peers: Whom this node has noticed, as of the call: that changes meanwhile, unlike a state.
        """
        coordinator = self._coordinator
        state, leadership = coordinator.state, coordinator.leadership
        with self._rendering:
            elections = self._elections.see(leadership)
            families = [
                *self._devices.families(state),
                *metrics_cluster.families(state, coordinator.node_id, leadership, elections),
                *metrics_paces.families(state),
                *metrics_cluster.counted(coordinator.counts),
                metrics_cluster.peers_seen(peers),
                Family(
                    "exo_data_connections_refused_total",
                    "counter",
                    "Connections to this node's data plane that were not let in.",
                    [("", self._refused_data_connections())],
                ),
            ]
        return write(families) + generate_latest(self._registry)
