"""One generation request from its arrival to its end: how it is counted, and which instance it burdens."""

import time
from collections import Counter
from collections.abc import Callable

from exo.api.generation import RunningGeneration
from exo.api.metrics import ServiceMetrics
from exo.shared.types.ids import InstanceId


class RequestRecord:
    """Counts one request exactly once, however often it is closed."""

    def __init__(
        self,
        metrics: ServiceMetrics,
        in_flight: Counter[InstanceId],
        route: str,
        model: str,
        note_busy: Callable[[bool], None] | None = None,
    ) -> None:
        self._metrics = metrics
        self._in_flight = in_flight
        self._route = route
        self._model = model
        self._note_busy = note_busy
        self._instance_id: InstanceId | None = None
        self._is_closed = False
        self._is_waiting = True
        metrics.requests_waiting.inc()
        self.arrived_s = time.perf_counter()

    def assign(self, instance_id: InstanceId) -> None:
        """Burden an instance with it until it is closed."""
        self._instance_id = instance_id
        self._in_flight[instance_id] += 1
        self._tell_busy()

    def accepted(self) -> None:
        """An engine has taken it: it waits no longer."""
        if self._is_waiting:
            self._is_waiting = False
            self._metrics.requests_waiting.dec()

    def close(self, status: int, running: RunningGeneration | None = None) -> None:
        """Count it, with the numbers of its generation where there was one."""
        if self._is_closed:
            return
        self._is_closed = True
        self.accepted()
        metrics = self._metrics
        metrics.requests.labels(self._route, str(status)).inc()
        metrics.request_duration_s.labels(self._route).observe(time.perf_counter() - self.arrived_s)
        if running is not None:
            # Only models that ran: a label for every wrong name would grow without bound.
            metrics.tokens_generated.labels(self._model).inc(running.completion_tokens)
            metrics.prompt_tokens.labels(self._model).inc(running.prompt_tokens)
            if running.time_to_first_token_s is not None:
                metrics.time_to_first_token_s.labels(self._model).observe(running.time_to_first_token_s)
            if running.time_per_output_token_s is not None:
                metrics.time_per_output_token_s.labels(self._model).observe(running.time_per_output_token_s)
        if self._instance_id is not None:
            self._in_flight[self._instance_id] -= 1
            if self._in_flight[self._instance_id] <= 0:
                del self._in_flight[self._instance_id]
            self._tell_busy()

    def _tell_busy(self) -> None:
        if self._note_busy is not None:
            self._note_busy(bool(self._in_flight))
