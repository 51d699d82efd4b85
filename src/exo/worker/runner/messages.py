"""What a worker and its stage processes say to each other:
a 4-byte big-endian length, then one msgpack message. Parent to child on stdin, child to parent on stdout."""

import msgspec

from exo.dataplane.identity import DataTrust
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.nodes import HostPort
from exo.worker.runner.steps import StepWindow


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag=True):
    pass


class RunnerSpec(_Message, frozen=True, kw_only=True):
    """Parent, first message: what to load and where to listen."""

    node_id: NodeId
    instance_id: InstanceId
    generation: int
    rank: int
    stage_count: int
    engine: str
    model_id: str
    model_dir: str
    start_layer: int
    end_layer: int
    device: str
    """Local alias of the device, such as `cpu:0`."""
    context_length: int
    concurrency: int
    data_host: str
    """Where to listen."""
    advertised_host: str | None = None
    """Where other hosts reach this one."""
    data_ports: tuple[int, int] | None = None
    """First and last port, of which one is taken; None: any free one."""
    secret: bytes
    """Proves to peers that this process belongs to the same user on the same host."""
    trust: DataTrust = DataTrust()
    """What to show to other hosts, and who is not let in. Names files; no key travels here."""
    stage_node_ids: tuple[NodeId, ...] = ()
    """Where the stages run, by rank; without them all have to be on this host."""
    verbosity: int = 0
    heartbeat_interval_s: float = 1.0


class LinkPeers(_Message, frozen=True, kw_only=True):
    """Parent, when every stage of the generation is loaded: all their addresses, by rank."""

    addresses: tuple[HostPort, ...]


class TrustChanged(_Message, frozen=True, kw_only=True):
    """Parent: the node has another certificate, or other nodes are not let in any more."""

    trust: DataTrust


class WorkAdvised(_Message, frozen=True, kw_only=True):
    """Parent, whenever it changes: heat or the battery allow so much work."""

    fraction: float
    """Of the time, 0 to 1; 0: pause."""


class StopRunner(_Message, frozen=True, kw_only=True):
    """Parent: finish and exit."""


class LoadProgressed(_Message, frozen=True, kw_only=True):
    loaded_layers: int
    total_layers: int
    detail: str = ""


class RunnerLoaded(_Message, frozen=True, kw_only=True):
    """Child: the layers are in memory and it listens here."""

    address: HostPort
    device_description: str = ""


class RunnerReady(_Message, frozen=True, kw_only=True):
    """Child: connected to its neighbours; requests may come."""


class ProcessEnding(msgspec.Struct, frozen=True, kw_only=True):
    """How a stage's process ended that did not say why."""

    exit_code: int | None
    """As `subprocess` gives it: minus the signal's number where one ended it; None: not known."""
    is_hung: bool
    """It was ended from outside because it had stopped to answer."""
    last_words: str
    """The end of what it wrote to its standard error."""


class RunnerFailed(_Message, frozen=True, kw_only=True):
    """Child, last message before it exits; also made by the parent when the child dies, hangs or is killed."""

    reason: str
    is_permanent: bool = False
    ending: ProcessEnding | None = None
    """Only where the parent made this."""


class Heartbeat(_Message, frozen=True, kw_only=True):
    """Child, every second from a thread of its own: it lives, and how long the present step has been running."""

    step_running_s: float
    requests_active: int
    tokens_total: int
    busy_s: float = 0.0
    """How long the engine has been running, since the stage serves."""
    steps: StepWindow | None = None
    """Decoding steps since the heartbeat before; None: there were none."""


ToChild = RunnerSpec | LinkPeers | TrustChanged | WorkAdvised | StopRunner
FromChild = LoadProgressed | RunnerLoaded | RunnerReady | RunnerFailed | Heartbeat
