"""A stage's whole loop in virtual time: its server, its role and its orders are real; sockets and layers are not."""

import os
from collections.abc import Callable
from typing import Any, Protocol, cast

from exo.dataplane.frames import Consumed, Frame, Generate, ReplyTo, TokenChunk
from exo.shared.types.generation import Sampling
from exo.shared.types.ids import InstanceId, NodeId, RequestId
from exo.shared.types.nodes import HostPort
from exo.worker.runner.control import Control
from exo.worker.runner.messages import FromChild, Heartbeat, LinkPeers, RunnerSpec, WorkAdvised
from exo.worker.runner.network import Connection, Network
from exo.worker.runner.pipes import MessageDecoder
from exo.worker.runner.serve import StageServer
from support.scripted_stage import LAYERS, scripted_stage

STEP_S = 0.25
HERE = HostPort("127.0.0.1", 1)
MANY = 10_000_000


class Clock(Protocol):
    """Seconds, for a test to move."""

    now_s: float

    def __call__(self) -> float: ...


class _Client(Connection):
    """An API node: takes every frame at once."""

    def __init__(self) -> None:
        self.is_dialled = False
        self.is_lost = False
        self.peer = None
        self.taken = 0

    @property
    def node_id(self) -> NodeId | None:
        return NodeId("api")

    def send(self, frame: Frame, payload: bytes | memoryview = b"") -> None:
        if isinstance(frame, TokenChunk):
            self.taken += 1


class _StandingStill:
    """A network where only time passes."""

    def __init__(self, clock: Clock, on_load: Callable[[bool], None]) -> None:
        self._clock = clock
        self._on_load = on_load
        self.until_s = 0.0
        self.client = _Client()
        self.on_frame: Callable[..., None] = lambda *_: None
        self.on_open = self.on_lost = self.on_frame

    def watch_wakeups(self, file: object) -> None:
        """Orders are looked at in every turn here."""

    def dial(self, *_: object, **__: object) -> _Client:
        return self.client

    def poll(self, timeout_s: float | None) -> None:
        self.on_frame(self.client, Consumed(request_id=RequestId("r"), count=self.client.taken), b"")
        left_s = max(0.0, self.until_s - self._clock.now_s)
        wait_s = left_s if timeout_s is None else min(timeout_s, left_s)
        if wait_s > 0:
            self._on_load(False)
            self._clock.now_s += wait_s

    def flush(self, timeout_s: float) -> None:
        """Nothing waits."""


class HeatedStage:
    """A stage with one request that never ends. `on_load` hears when its device begins and ends to compute."""

    def __init__(self, clock: Clock, on_load: Callable[[bool], None]) -> None:
        self._clock = clock
        self._on_load = on_load
        self.fraction = 1.0
        """What it was told last."""
        self.broken: Exception | None = None
        self.steps = 0
        stage = scripted_stage(0, LAYERS, lambda total, _: 97 + total % 26)
        stage.on_step = self._step
        reading, writing = os.pipe()
        self._reports = os.fdopen(reading, "rb", buffering=0)
        self._written = os.fdopen(writing, "wb", buffering=0)
        self._control = Control(reading, writing, heartbeat_interval_s=1.0)
        self._network = _StandingStill(clock, on_load)
        self._server = StageServer(_SPEC, stage, cast(Network, self._network), self._control, clock=clock)
        self._order(LinkPeers(addresses=(HERE,)))
        self._server.turn()
        request = Generate(
            request_id=RequestId("r"),
            instance_id=_SPEC.instance_id,
            generation=1,
            reply_to=ReplyTo(HERE, NodeId("api")),
            prompt="hello",
            max_tokens=None,
            ignore_end=True,
            sampling=Sampling(),
        )
        self._network.on_frame(self._network.client, request, b"")

    def close(self) -> None:
        """Give its descriptors back."""
        self._reports.close()
        self._written.close()
        for name in ("wakeups", "_wake", "_signals", "_signalled"):
            getattr(self._control, name).close()

    @property
    def busy_s(self) -> float:
        """What its heartbeats say of it."""
        return self._control.busy_s

    @property
    def tokens_total(self) -> int:
        """What its client got."""
        return self._network.client.taken

    @property
    def has_requests(self) -> bool:
        """Whether it still has the one that it was given."""
        return self._control.requests_active == 1

    @property
    def is_answering_heartbeats(self) -> bool:
        """Whether its supervisor would hear a heartbeat without a step that runs too long."""
        self._control._beat(self._clock.now_s)  # pyright: ignore[reportPrivateUsage]
        said: list[FromChild] = MessageDecoder.of_child().feed(os.read(self._reports.fileno(), 65536))
        return isinstance(said[-1], Heartbeat) and said[-1].step_running_s == 0

    def set_work(self, fraction: float) -> None:
        """Tell it, as its supervisor does."""
        self.fraction = fraction
        self._order(WorkAdvised(fraction=fraction))

    def serve_until(self, until_s: float) -> None:
        """Let it serve; its last step may take longer."""
        self._network.until_s = until_s
        while self._clock.now_s < until_s:
            assert self._server.turn()

    def _order(self, order: Any) -> None:
        self._control._order(order)  # pyright: ignore[reportPrivateUsage]

    def _step(self, positions: int) -> None:
        self._on_load(True)
        self._clock.now_s += STEP_S
        self.steps += 1


_SPEC = RunnerSpec(
    node_id=NodeId("n"),
    instance_id=InstanceId("i"),
    generation=1,
    rank=0,
    stage_count=1,
    engine="scripted",
    model_id="m",
    model_dir="",
    start_layer=0,
    end_layer=LAYERS,
    device="cuda:0",
    context_length=MANY,
    concurrency=1,
    data_host="127.0.0.1",
    secret=b"",
)
