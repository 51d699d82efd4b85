"""A stage's process without the process: links to neighbours, orders, and what happens when one is missing."""

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exo.dataplane.frames import Generate, ReplyTo
from exo.dataplane.handshake import REPLIES, REQUESTS, stage_purpose
from exo.dataplane.identity import DataTrust
from exo.shared.addresses import is_loopback
from exo.shared.types.generation import Sampling
from exo.shared.types.ids import InstanceId, NodeId, RequestId
from exo.shared.types.nodes import HostPort
from exo.worker.runner import serve
from exo.worker.runner.control import Control
from exo.worker.runner.messages import (
    FromChild,
    LinkPeers,
    RunnerReady,
    RunnerSpec,
    StopRunner,
    ToChild,
    TrustChanged,
)
from exo.worker.runner.network import Network
from exo.worker.runner.pipes import MessageDecoder
from exo.worker.runner.role import StageBrokenError
from exo.worker.runner.serve import StageServer
from support.data_hosts import is_nobody_local, member
from support.memberships import Membership
from support.scripted_stage import LAYERS, scripted_stage

SECRET = b"k" * 32


class Process:
    """What a stage process consists of, with the parent's ends of its pipes."""

    def __init__(self, rank: int, count: int, trust: DataTrust | None = None) -> None:
        self.spec = RunnerSpec(
            node_id=NodeId(f"n{rank}"),
            stage_node_ids=tuple(NodeId(f"n{other}") for other in range(count)),
            instance_id=InstanceId("i"),
            generation=3,
            rank=rank,
            stage_count=count,
            engine="scripted",
            model_id="m",
            model_dir="",
            start_layer=rank * LAYERS // count,
            end_layer=(rank + 1) * LAYERS // count,
            device="cpu:0",
            context_length=100,
            concurrency=1,
            data_host="127.0.0.1",
            secret=SECRET,
        )
        self._orders, self.orders = os.pipe()
        self.reports, self._reports = os.pipe()
        self.network = Network(
            "127.0.0.1",
            secret=SECRET,
            sender=f"stage {rank}",
            node_id=self.spec.node_id,
            trust=trust,
            is_local=is_loopback if trust is None else is_nobody_local,
        )
        self.control = Control(self._orders, self._reports, heartbeat_interval_s=60)
        stage = scripted_stage(self.spec.start_layer, self.spec.end_layer, lambda total, _: 97 + total % 26)
        self.server = StageServer(self.spec, stage, self.network, self.control)
        self.failure: StageBrokenError | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.server.run()
        except StageBrokenError as error:
            self.failure = error

    def begin(self) -> None:
        self._thread.start()

    def order(self, order: ToChild) -> None:
        # As the control thread does it; that thread itself is not started here, for it may end the process.
        self.control._order(order)  # pyright: ignore[reportPrivateUsage]

    def end(self) -> None:
        if self._thread.ident is not None:
            self._thread.join(10)
            assert not self._thread.is_alive()

    def close(self) -> None:
        self.order(StopRunner())
        self.end()
        self.network.close()
        for file in (self._orders, self.orders, self.reports, self._reports):
            os.close(file)
        for file in (
            self.control.wakeups,
            self.control._wake,  # pyright: ignore[reportPrivateUsage]
            self.control._signals,  # pyright: ignore[reportPrivateUsage]
            self.control._signalled,  # pyright: ignore[reportPrivateUsage]
        ):
            file.close()

    def said(self) -> list[FromChild]:
        """Return what it has said so far, waiting for something."""
        assert select.select([self.reports], [], [], 20)[0], "it said nothing for 20 s"
        return MessageDecoder.of_child().feed(os.read(self.reports, 65536))


@contextmanager
def processes(
    count: int, *, started: int | None = None, membership: Membership | None = None
) -> Iterator[list[Process]]:
    made = [
        Process(rank, count, None if membership is None else member(membership, f"n{rank}"))
        for rank in range(count)
    ]
    try:
        for process in made[:started]:
            process.begin()
        yield made
    finally:
        for process in made:
            process.close()


def addresses(made: list[Process]) -> LinkPeers:
    return LinkPeers(addresses=tuple(process.network.address for process in made))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_linked_stages_are_ready_in_whatever_order_they_hear_of_it(count: int) -> None:
    with processes(count) as made:
        for process in reversed(made):
            process.order(addresses(made))
        for process in made:
            assert process.said() == [RunnerReady()]


def test_linking_twice_changes_nothing() -> None:
    with processes(2) as made:
        for process in made * 2:
            process.order(addresses(made))
        for process in made:
            assert process.said() == [RunnerReady()]


def test_a_neighbour_that_is_not_there_is_named() -> None:
    with processes(2, started=1) as made:
        made[0].order(LinkPeers(addresses=(made[0].network.address, HostPort("127.0.0.1", 1))))
        made[0].end()
        assert made[0].failure is not None
        assert "stage 1, a neighbour of this one, cannot be reached" in made[0].failure.message


def test_neighbours_that_do_not_come_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LINK_TIMEOUT_S", 0.2)
    with processes(3, started=1) as made:
        # The one behind listens but does not answer; the one before never dials.
        made[0].order(addresses(made))
        made[0].end()
        assert made[0].failure is not None
        assert "no link to stage 2 and stage 1 within 0.2 s" in made[0].failure.message


def test_a_neighbour_that_goes_is_named() -> None:
    with processes(2) as made:
        for process in made:
            process.order(addresses(made))
        for process in made:
            process.said()
        made[1].order(StopRunner())
        made[1].end()
        made[1].network.close()
        made[0].end()
        assert made[0].failure is not None
        assert "stage 1, a neighbour of this one, was lost" in made[0].failure.message
        made[1].network = Network("127.0.0.1", secret=SECRET, sender="closed")


def test_too_few_addresses() -> None:
    with processes(3, started=1) as made:
        made[0].order(LinkPeers(addresses=(made[0].network.address,)))
        made[0].end()
        assert made[0].failure is not None
        assert "1 addresses came for 3 stages" in made[0].failure.message


@pytest.mark.parametrize(
    "purpose", [REPLIES, stage_purpose(InstanceId("i"), 2, 1), stage_purpose(InstanceId("i"), 3, 0)]
)
def test_whoever_comes_for_something_else_is_turned_away(purpose: str) -> None:
    with processes(2, started=1) as made:
        network = made[1].network
        lost: list[str] = []
        network.on_lost = lambda _, reason: lost.append(reason)
        network.dial(made[0].network.address, purpose, "first")
        deadline = time.monotonic() + 10
        while not lost and time.monotonic() < deadline:
            network.poll(0.05)
        assert lost == ["it closed the connection"]


def test_an_api_node_is_let_in() -> None:
    with processes(1) as made, processes(1, started=0) as others:
        network = others[0].network
        connection = network.dial(made[0].network.address, REQUESTS, "first")
        deadline = time.monotonic() + 10
        while not connection.is_open and time.monotonic() < deadline:
            network.poll(0.05)
        assert connection.is_open


# --- stages on different hosts ----------------------------------------------------------------------------------


def far(membership: Membership, node_id: str) -> Network:
    """Return the sockets of somebody else in the cluster, on another host."""
    return Network(
        "127.0.0.1",
        secret=b"far" * 9,
        sender=node_id,
        node_id=NodeId(node_id),
        trust=member(membership, node_id),
        is_local=is_nobody_local,
    )


def poll_until(network: Network, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 10 s"
        network.poll(0.05)


def test_stages_on_different_hosts_link_with_their_certificates(tmp_path: Path) -> None:
    with processes(3, membership=Membership(tmp_path)) as made:
        for process in made:
            process.order(addresses(made))
        for process in made:
            assert process.said() == [RunnerReady()]


def test_a_node_that_the_plan_does_not_know_cannot_be_the_stage_before(tmp_path: Path) -> None:
    membership = Membership(tmp_path)
    with processes(2, membership=membership) as made:
        impostor = far(membership, "impostor")
        lost: list[str] = []
        impostor.on_lost = lambda _, reason: lost.append(reason)
        try:
            impostor.dial(
                made[0].network.address,
                stage_purpose(InstanceId("i"), 3, 1),
                "first",
                node_id=NodeId("n0"),
            )
            poll_until(impostor, lambda: bool(lost))
        finally:
            impostor.close()
        # The one that belongs there still can.
        for process in made:
            process.order(addresses(made))
        for process in made:
            assert process.said() == [RunnerReady()]


def test_a_neighbour_that_is_thrown_out_is_cut_off(tmp_path: Path) -> None:
    membership = Membership(tmp_path)
    with processes(2, membership=membership) as made:
        for process in made:
            process.order(addresses(made))
        for process in made:
            process.said()
        identity = member(membership, "n0").identity
        made[0].order(TrustChanged(trust=DataTrust(identity=identity)))
        made[0].order(
            TrustChanged(trust=DataTrust(identity=identity, removed_node_ids=frozenset({NodeId("n1")})))
        )
        for process in made:
            process.end()
        assert made[0].failure is not None
        assert "was lost: the certificate of the node n1 was revoked" in made[0].failure.message
        assert made[1].failure is not None


@pytest.mark.parametrize(("reply_node", "is_accepted"), [("api", True), ("another", False)])
def test_tokens_are_asked_for_oneself_only(tmp_path: Path, reply_node: str, is_accepted: bool) -> None:
    membership = Membership(tmp_path)
    with processes(1, membership=membership) as made:
        made[0].order(addresses(made))
        made[0].said()
        api = far(membership, "api")
        heard: list[object] = []
        api.on_frame = lambda _, frame, payload: heard.append(frame)
        api.on_lost = lambda _, reason: heard.append(reason)
        try:
            api.dial(made[0].network.address, REQUESTS, "first", node_id=NodeId("n0")).send(
                Generate(
                    request_id=RequestId("r"),
                    instance_id=InstanceId("i"),
                    generation=3,
                    prompt="hello",
                    max_tokens=1,
                    sampling=Sampling(),
                    reply_to=ReplyTo(api.address, NodeId(reply_node)),
                )
            )
            poll_until(api, lambda: bool(heard))
            assert (type(heard[0]).__name__ == "Accepted") == is_accepted
            if is_accepted:
                # The answer comes to where it was asked for, on a connection of its own, from that node.
                poll_until(api, lambda: any(type(one).__name__ == "TokenChunk" for one in heard))
        finally:
            api.close()
