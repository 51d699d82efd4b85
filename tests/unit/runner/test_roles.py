"""Stages serving requests, wired in memory: order, fairness, limits, cancellation, failure. No process, no engine."""

import itertools
import re
from collections import deque
from collections.abc import Callable, Hashable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.dataplane import frames as f
from exo.dataplane.errors import ProtocolError
from exo.dataplane.flow import ACTIVATIONS_WAITING_MAX, BACKLOG_BYTES_MAX, WINDOW_CHUNKS
from exo.shared.types.generation import ChatMessage, Sampling
from exo.shared.types.ids import InstanceId, NodeId, RequestId
from exo.shared.types.nodes import HostPort
from exo.worker.runner.first import FirstStage
from exo.worker.runner.following import FollowingStage
from exo.worker.runner.messages import RunnerSpec
from exo.worker.runner.requests import QUEUE_LENGTH_MAX
from exo.worker.runner.role import Role, StageBrokenError
from support.scripted_stage import END, LAYERS, ScriptedStage, scripted_stage

REPLY = f.ReplyTo(HostPort("127.0.0.1", 1234), NodeId("api"))


def next_letter(total: int, count: int) -> int:
    """Answer with letters that depend on everything before."""
    return 97 + (total * 7 + count) % 26


class Wire:
    """One stage's outbox: keeps what it sends."""

    def __init__(self, world: "World", rank: int) -> None:
        self._world = world
        self._rank = rank
        self.is_held = False
        self.backlog_bytes = 0
        self.inbox: deque[tuple[f.Frame, bytes]] = deque()
        """From the stage before."""

    def to_client(self, client: Hashable, frame: f.Frame) -> None:
        self._world.answers.append((client, frame))

    def to_reply(self, reply_to: f.ReplyTo, frame: f.Frame) -> None:
        assert reply_to == REPLY
        self._world.replies.append(frame)

    def to_next(self, frame: f.Frame, payload: bytes | memoryview = b"") -> None:
        after = self._world.wires[(self._rank + 1) % len(self._world.wires)]
        after.inbox.append((frame, bytes(payload)))

    def hold_previous(self, is_held: bool) -> None:
        self.is_held = is_held

    @property
    def next_backlog_bytes(self) -> int:
        return self.backlog_bytes


class World:
    """A pipeline of `count` stages whose frames the test moves."""

    def __init__(
        self,
        count: int = 1,
        *,
        answer: Callable[[int, int], int] = next_letter,
        context_length: int = 2000,
        concurrency: int = 4,
        paces: Sequence[int] | None = None,
    ) -> None:
        self.now = 0.0
        self.answers: list[tuple[Hashable, f.Frame]] = []
        self.replies: list[f.Frame] = []
        self.wires = [Wire(self, rank) for rank in range(count)]
        bounds = [rank * LAYERS // count for rank in range(count + 1)]
        self.stages: list[ScriptedStage] = [
            scripted_stage(start, end, answer) for start, end in itertools.pairwise(bounds)
        ]
        for stage, pace in zip(self.stages, paces or [], strict=False):
            stage.prefill_tokens = pace
        self.roles: list[Role] = []
        for rank, (stage, wire) in enumerate(zip(self.stages, self.wires, strict=True)):
            spec = RunnerSpec(
                node_id=NodeId("n"),
                instance_id=InstanceId("i"),
                generation=1,
                rank=rank,
                stage_count=count,
                engine="scripted",
                model_id="m",
                model_dir="",
                start_layer=bounds[rank],
                end_layer=bounds[rank + 1],
                device="cpu:0",
                context_length=context_length,
                concurrency=concurrency,
                data_host="127.0.0.1",
                secret=b"",
            )
            kind = FirstStage if rank == 0 else FollowingStage
            self.roles.append(kind(spec, stage, wire, clock=lambda: self.now))
        for role in self.roles:
            role.linked()
        while self.turn():
            pass
        assert all(role.is_paced for role in self.roles)
        self.first.is_ready = True

    @property
    def first(self) -> FirstStage:
        first = self.roles[0]
        assert isinstance(first, FirstStage)
        return first

    def ask(self, name: str = "r", *, client: str = "api", **fields: object) -> f.Frame:
        """Send a request and return the answer."""
        chosen: dict[str, object] = {"prompt": "hello", "max_tokens": 5, "sampling": Sampling(), **fields}
        before = len(self.answers)
        self.first.from_client(
            client,
            f.Generate(
                request_id=RequestId(name),
                instance_id=InstanceId("i"),
                generation=1,
                reply_to=REPLY,
                **chosen,  # pyright: ignore[reportArgumentType]
            ),
        )
        return self.answers[before][1]

    def turn(self) -> bool:
        """Move every waiting frame and let every stage take one step; say whether anything happened."""
        moved = False
        for role, wire in zip(self.roles, self.wires, strict=True):
            while wire.inbox and not wire.is_held:
                role.from_previous(*wire.inbox.popleft())
                moved = True
        for role in self.roles:
            if role.has_work:
                role.step()
                moved = True
        return moved

    def run(self) -> None:
        """Go on until nothing happens any more."""
        for _ in range(100_000):
            if not self.turn():
                return
        raise AssertionError("it never came to rest")

    def text(self, name: str = "r") -> str:
        return "".join(chunk.text for chunk in self.chunks(name))

    def chunks(self, name: str = "r") -> list[f.TokenChunk]:
        return [
            frame for frame in self.replies if isinstance(frame, f.TokenChunk) and frame.request_id == name
        ]

    def failures(self) -> list[f.Failed]:
        return [frame for _, frame in self.answers if isinstance(frame, f.Failed)]

    def is_at_rest(self) -> bool:
        """Nothing is kept of any request."""
        return all(not stage.sums for stage in self.stages) and all(
            not role.active_count for role in self.roles
        )


def expected(prompt: str, count: int) -> str:
    """Return what a stage answers, worked out without one."""
    tokens = [ord(letter) for letter in prompt]
    for _ in range(count):
        tokens.append(next_letter(sum(tokens), len(tokens)))
    return "".join(chr(token) for token in tokens[len(prompt) :])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_number_of_stages_gives_the_same_answer(count: int) -> None:
    world = World(count)
    assert world.ask(max_tokens=40) == f.Accepted(request_id=RequestId("r"), prompt_tokens=5)
    world.run()
    assert world.text() == expected("hello", 40)
    assert [chunk.index for chunk in world.chunks()] == list(range(40))
    assert [chunk.finish_reason for chunk in world.chunks()] == [None] * 39 + ["length"]
    assert world.is_at_rest()


@given(
    count=st.integers(1, 4),
    prompts=st.lists(st.text("abcdef", min_size=1, max_size=1500), min_size=1, max_size=6),
    max_tokens=st.lists(st.integers(1, 60), min_size=6, max_size=6),
    concurrency=st.integers(1, 6),
)
def test_requests_side_by_side_get_their_own_answers(
    count: int, prompts: list[str], max_tokens: list[int], concurrency: int
) -> None:
    world = World(count, concurrency=concurrency)
    for number, prompt in enumerate(prompts):
        world.ask(f"r{number}", prompt=prompt, max_tokens=max_tokens[number])
    world.run()
    for number, prompt in enumerate(prompts):
        assert world.text(f"r{number}") == expected(prompt, max_tokens[number])
    assert world.is_at_rest()


@pytest.mark.parametrize("count", [1, 3])
def test_requests_take_turns(count: int) -> None:
    world = World(count)
    for name in ("a", "b", "c"):
        world.ask(name, max_tokens=10)
    world.run()
    order = [chunk.request_id for chunk in world.replies if isinstance(chunk, f.TokenChunk)]
    for place in range(0, 30, 3):
        assert sorted(order[place : place + 3]) == ["a", "b", "c"]


def test_a_long_prompt_does_not_hold_the_others_up() -> None:
    world = World(1, context_length=20_000)
    world.ask("short", max_tokens=30)
    world.turn()
    world.ask("long", prompt="x" * 6000, max_tokens=2)
    world.run()
    long_began = [place for place, (name, _) in enumerate(world.stages[0].steps) if name == "long"]
    between = world.stages[0].steps[long_began[0] : long_began[-1]]
    assert [name for name, _ in between].count("short") >= 10
    assert max(size for _, size in world.stages[0].steps) == 512


def test_the_last_token_of_a_prompt_is_run_by_itself() -> None:
    world = World(1)
    world.ask(prompt="x" * 1025, max_tokens=1)
    world.run()
    assert [size for _, size in world.stages[0].steps] == [512, 512, 1]


@pytest.mark.parametrize("count", [1, 3])
def test_the_models_end(count: int) -> None:
    world = World(count, answer=lambda total, tokens: END if tokens >= 9 else 98)
    world.ask(max_tokens=None)
    world.run()
    assert world.text() == "bbbb"
    assert world.chunks()[-1].finish_reason == "stop"
    assert world.is_at_rest()


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_string(count: int) -> None:
    world = World(count)
    whole = expected("hello", 40)
    world.ask(max_tokens=40, stop=(whole[10:13],))
    world.run()
    assert world.text() == whole[: whole.index(whole[10:13])]
    assert world.is_at_rest()


@pytest.mark.parametrize("count", [1, 3])
def test_a_slow_client_stops_the_stages_at_the_window(count: int) -> None:
    world = World(count)
    world.ask(max_tokens=None)
    world.run()
    assert len(world.chunks()) == WINDOW_CHUNKS
    world.first.from_client("api", f.Consumed(request_id=RequestId("r"), count=64))
    world.run()
    assert len(world.chunks()) == WINDOW_CHUNKS + 64
    # Nobody may claim to have taken what was never sent.
    world.first.from_client("api", f.Consumed(request_id=RequestId("r"), count=10**9))
    world.run()
    assert len(world.chunks()) == 2 * WINDOW_CHUNKS + 64


def test_a_slow_client_does_not_hold_the_others_up() -> None:
    world = World(2)
    world.ask("slow", max_tokens=None)
    world.ask("quick", max_tokens=500)
    while world.turn():
        world.first.from_client(
            "api", f.Consumed(request_id=RequestId("quick"), count=len(world.chunks("quick")))
        )
    assert len(world.chunks("slow")) == WINDOW_CHUNKS
    assert len(world.chunks("quick")) == 500


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("turns", [0, 1, 2, 7])
def test_cancelling_frees_everything_everywhere(count: int, turns: int) -> None:
    world = World(count)
    world.ask("kept", max_tokens=20)
    world.ask("dropped", prompt="x" * 1300, max_tokens=20)
    for _ in range(turns):
        world.turn()
    world.first.from_client("api", f.Cancel(request_id=RequestId("dropped")))
    sent = len(world.chunks("dropped"))
    world.run()
    # What was on its way when it was cancelled may still arrive.
    assert len(world.chunks("dropped")) <= sent + 1
    assert world.text("kept") == expected("hello", 20)
    assert world.is_at_rest()


def test_only_its_own_client_can_cancel_a_request() -> None:
    world = World(1)
    world.ask(max_tokens=10)
    world.first.from_client("another", f.Cancel(request_id=RequestId("r")))
    world.run()
    assert len(world.chunks()) == 10


def test_a_client_that_goes_away_takes_its_requests_along() -> None:
    world = World(2, concurrency=1)
    world.ask("mine", client="a", max_tokens=None)
    world.ask("waiting", client="a", max_tokens=None)
    world.ask("other", client="b", max_tokens=6)
    world.turn()
    world.first.client_lost("a")
    world.run()
    assert world.text("other") == expected("hello", 6)
    assert world.chunks("waiting") == []
    assert world.is_at_rest()


def test_the_queue_is_bounded() -> None:
    world = World(1, concurrency=1)
    for number in range(QUEUE_LENGTH_MAX + 1):
        assert isinstance(world.ask(f"r{number}", max_tokens=None), f.Accepted)
    refused = world.ask("too many")
    assert isinstance(refused, f.Rejected)
    assert (refused.status, refused.code) == (429, "queue_full")


def test_requests_wait_for_room_in_the_cache_in_order() -> None:
    world = World(1, context_length=100, concurrency=2)
    for name in ("a", "b"):
        world.ask(name, max_tokens=None)
    world.ask("c", max_tokens=None)
    world.ask("d", max_tokens=1)
    world.turn()
    assert set(world.stages[0].sums) == {"a", "b"}
    world.run()
    finished = [
        chunk.request_id for chunk in world.replies if isinstance(chunk, f.TokenChunk) and chunk.finish_reason
    ]
    assert finished.index("d") > finished.index("a")
    assert all(world.text(name) == expected("hello", 95) for name in ("a", "b", "c"))


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        (
            {"prompt": "x" * 100},
            "context_length_exceeded",
            "100 tokens.*1 more than the context length of 100",
        ),
        (
            {"prompt": "x" * 350},
            "context_length_exceeded",
            "350 tokens.*251 more than the context length of 100",
        ),
        ({"prompt": ""}, "empty_prompt", "no tokens"),
        ({"prompt": "break"}, "invalid_prompt", "no such letter"),
        ({"prompt": None}, "invalid_request", "exactly one"),
        ({"prompt_token_ids": (1,)}, "invalid_request", "exactly one"),
        ({"prompt": None, "prompt_token_ids": (1, 1000)}, "invalid_prompt", "no token 1000; .* 0 to 999"),
        ({"prompt": None, "prompt_token_ids": (-1,)}, "invalid_prompt", "no token -1"),
        (
            {"prompt": None, "messages": (ChatMessage(role="bad", content="x"),)},
            "invalid_prompt",
            "refuses the role bad",
        ),
        ({"max_tokens": 0}, "invalid_request", "max_tokens is 0"),
        ({"sampling": Sampling(temperature=-1.0)}, "invalid_request", "temperature is -1"),
        ({"sampling": Sampling(temperature=float("nan"))}, "invalid_request", "temperature is nan"),
        ({"sampling": Sampling(top_p=0.0)}, "invalid_request", "top_p is 0"),
        ({"sampling": Sampling(top_k=-1)}, "invalid_request", "top_k is -1"),
        ({"sampling": Sampling(min_p=1.5)}, "invalid_request", "min_p is 1.5"),
        ({"stop": ("x",) * 17}, "invalid_request", "17 stop strings; at most 16"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(fields: dict[str, object], code: str, said: str) -> None:
    world = World(1, context_length=100)
    refused = world.ask(**fields)
    assert isinstance(refused, f.Rejected)
    assert (refused.status, refused.code) == (400, code)
    assert re.search(said, refused.message), refused.message
    assert world.is_at_rest()


def test_a_prompt_just_as_long_as_fits() -> None:
    world = World(1, context_length=100)
    assert isinstance(world.ask(prompt="x" * 99, max_tokens=50), f.Accepted)
    world.run()
    assert [chunk.finish_reason for chunk in world.chunks()] == ["length"]


def test_another_generation_is_refused() -> None:
    world = World(1)
    frame = f.Generate(
        request_id=RequestId("r"),
        instance_id=InstanceId("i"),
        generation=2,
        prompt="x",
        sampling=Sampling(),
        reply_to=REPLY,
    )
    world.first.from_client("api", frame)
    refused = world.answers[-1][1]
    assert isinstance(refused, f.Rejected)
    assert (refused.status, refused.code) == (409, "wrong_generation")


def test_the_same_id_twice_is_refused() -> None:
    world = World(1)
    world.ask(max_tokens=3)
    refused = world.ask()
    assert isinstance(refused, f.Rejected)
    assert refused.status == 409
    world.run()
    assert len(world.chunks()) == 3


def test_nothing_is_taken_before_the_stages_are_linked() -> None:
    world = World(2)
    world.first.is_ready = False
    refused = world.ask()
    assert isinstance(refused, f.Rejected)
    assert (refused.status, refused.code) == (503, "not_ready")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_failing_step_ends_its_request_only(count: int) -> None:
    for rank in range(count):
        world = World(count)
        world.ask("first", max_tokens=5)
        world.run()
        world.stages[rank].fail_with = ValueError("it cannot be computed")
        world.ask("bad", max_tokens=5)
        world.run()
        world.stages[rank].fail_with = None
        world.ask("good", max_tokens=5)
        world.run()
        (failed,) = world.failures()
        assert (failed.request_id, failed.code) == ("bad", "engine_error")
        assert "it cannot be computed" in failed.message
        assert world.text("good") == expected("hello", 5)
        assert world.is_at_rest()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_request_that_cannot_be_begun_fails_alone(count: int) -> None:
    for rank in range(count):
        world = World(count)
        world.stages[rank].fail_to_open_with = ValueError("no cache")
        world.ask("bad", max_tokens=5)
        world.run()
        world.stages[rank].fail_to_open_with = None
        world.ask("good", max_tokens=5)
        world.run()
        (failed,) = world.failures()
        assert (failed.request_id, failed.code) == ("bad", "engine_error")
        assert world.text("good") == expected("hello", 5)
        assert world.is_at_rest()


@pytest.mark.parametrize("rank", [0, 1])
def test_running_out_of_memory_breaks_the_stage(rank: int) -> None:
    world = World(2)
    world.stages[rank].fail_with = RuntimeError("[malloc] Unable to allocate 1234 bytes")
    world.ask()
    with pytest.raises(StageBrokenError, match="memory ran out"):
        world.run()


def test_failing_again_and_again_breaks_the_stage() -> None:
    world = World(1)
    world.stages[0].fail_with = ValueError("always")
    world.ask("r1")
    world.ask("r2")
    world.run()
    world.ask("r3")
    with pytest.raises(StageBrokenError, match="3 steps in a row failed: always"):
        world.run()


@pytest.mark.parametrize("count", [1, 3])
def test_everything_fails_when_the_stage_ends(count: int) -> None:
    world = World(count, concurrency=1)
    world.ask("runs", max_tokens=None)
    world.ask("waits", max_tokens=None)
    world.turn()
    for role in world.roles:
        role.fail_all("stage_failed", "it is over")
    told = {frame.request_id for frame in world.failures()}
    assert told == {"runs", "waits"}
    assert world.is_at_rest()


@pytest.mark.parametrize("count", [1, 3])
def test_tokens_that_cannot_be_sent_end_the_request(count: int) -> None:
    world = World(count)
    world.ask(max_tokens=None)
    for _ in range(8):
        world.turn()
    world.roles[-1].reply_lost(REPLY, "nobody listens there")
    world.run()
    (failed,) = world.failures()
    assert failed.code == "reply_lost"
    assert "nobody listens there" in failed.message
    assert world.is_at_rest()


def test_no_activations_are_made_while_the_next_stage_is_behind() -> None:
    world = World(2)
    world.ask(prompt="x" * 1500, max_tokens=1)
    world.wires[0].backlog_bytes = BACKLOG_BYTES_MAX
    assert not world.first.has_work
    world.wires[0].backlog_bytes = 0
    assert world.first.has_work


def test_a_middle_stage_does_not_run_ahead_of_a_slow_last_one() -> None:
    world = World(3, context_length=40_000, paces=[64, 64, 64])
    world.ask(prompt="x" * (64 * 40), max_tokens=1)
    world.wires[1].backlog_bytes = BACKLOG_BYTES_MAX
    world.run()
    # The middle stage computes nothing, takes in what it may hold, and leaves the rest with the first one.
    assert world.stages[1].steps == []
    assert world.wires[1].is_held
    assert not world.roles[1].has_work
    world.wires[1].backlog_bytes = 0
    world.run()
    assert len(world.chunks()) == 1
    assert not world.wires[1].is_held


@pytest.mark.parametrize(
    "paces", [[16], [16, 512], [512, 16], [512, 16, 32], [64, 32, 16], [16, 32, 64, 512]]
)
def test_a_prompt_is_cut_as_the_slowest_stage_can_take_it(paces: list[int]) -> None:
    world = World(len(paces), paces=paces)
    world.ask(prompt="x" * 45, max_tokens=1)
    world.run()
    for stage in world.stages:
        assert [size for _, size in stage.steps] == [16, 16, 12, 1]
    assert world.text() == expected("x" * 45, 1)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_stage_that_has_become_slow_gets_less_at_a_time(count: int) -> None:
    for rank in range(count):
        world = World(count, context_length=10_000)

        def slow(sizes: int, world: World = world) -> None:
            world.now += 0.1 * sizes

        world.stages[rank].on_step = slow
        world.ask(prompt="x" * 5000, max_tokens=1)
        world.run()
        sizes = [size for _, size in world.stages[rank].steps]
        # 512 positions take 51 s, 64 take less than the 10 s that are too slow; chunks under way came as they were.
        assert sizes[0] == 512
        assert sizes[-3] == 64
        assert world.text() == expected("x" * 5000, 1)
        seen = len(world.stages[rank].steps)
        world.ask("again", prompt="x" * 1000, max_tokens=1)
        world.run()
        assert max(size for _, size in world.stages[rank].steps[seen:]) == 64


@pytest.mark.parametrize("hot", [0, 1, 2])
def test_while_a_stage_is_held_back_all_take_prompts_in_smaller_pieces(hot: int) -> None:
    world = World(3, paces=[64, 64, 64])
    for share, pieces in ((0.25, [16] * 6 + [3, 1]), (1.0, [64, 35, 1])):
        world.roles[hot].slow_down(may_run_ahead=share == 1, prefill_share=share)
        while world.turn():
            pass
        for stage in world.stages:
            stage.steps.clear()
        world.ask(str(share), prompt="x" * 100, max_tokens=1)
        world.run()
        assert all([count for _, count in stage.steps] == pieces for stage in world.stages)


def test_while_it_is_held_back_the_engine_does_not_run_ahead() -> None:
    world = World()
    world.ask(max_tokens=6)
    (stage,) = world.stages
    while len(stage.ran_ahead) < 2:
        world.turn()
    world.first.slow_down(may_run_ahead=False, prefill_share=1)
    while len(stage.ran_ahead) < 4:
        world.turn()
    world.first.slow_down(may_run_ahead=True, prefill_share=1)
    world.run()
    assert stage.ran_ahead == [True, True, False, False, True, False]


def test_a_stage_that_is_behind_stops_reading() -> None:
    world = World(2, context_length=40_000)
    world.ask(prompt="x" * (512 * 20), max_tokens=1)
    while world.first.has_work:
        world.first.step()
    following, wire = world.roles[1], world.wires[1]
    taken = 0
    while wire.inbox and not wire.is_held:
        following.from_previous(*wire.inbox.popleft())
        taken += 1
    assert taken == ACTIVATIONS_WAITING_MAX + 1  # The first was `Open`.
    world.run()
    assert len(world.chunks()) == 1


def test_a_confused_neighbour_breaks_the_stage() -> None:
    world = World(2)
    world.ask(max_tokens=3)
    world.first.step()
    opened = world.wires[1].inbox.popleft()
    header, payload = world.wires[1].inbox.popleft()
    assert isinstance(header, f.Activation)
    world.roles[1].from_previous(*opened)
    shifted = f.Activation(
        request_id=header.request_id, position=3, shape=header.shape, dtype=header.dtype, wants_token=False
    )
    world.roles[1].from_previous(shifted, payload)
    with pytest.raises(StageBrokenError, match="position 3 of a request where 0 follows"):
        world.roles[1].step()


def test_activations_that_do_not_fit_their_shape_fail_the_request() -> None:
    world = World(2)
    world.ask(max_tokens=3)
    world.first.step()
    world.wires[1].inbox[-1] = (world.wires[1].inbox[-1][0], b"123")
    world.run()
    assert [failed.request_id for failed in world.failures()] == ["r"]
    assert world.is_at_rest()


def test_frames_in_the_wrong_place_are_refused() -> None:
    world = World(2)
    with pytest.raises(ProtocolError, match="Sampled"):
        world.first.from_client("api", f.Sampled(request_id=RequestId("r"), token_id=1, is_finished=False))
    with pytest.raises(ProtocolError, match="Consumed"):
        world.first.from_previous(f.Consumed(request_id=RequestId("r"), count=1), b"")
    with pytest.raises(ProtocolError, match="Consumed"):
        world.roles[1].from_previous(f.Consumed(request_id=RequestId("r"), count=1), b"")
    with pytest.raises(ProtocolError, match="not the first one"):
        world.roles[1].from_client("api", f.Consumed(request_id=RequestId("r"), count=1))
