"""Quotas of keys: what counts in which minute and on which day, over all nodes, and what a client is told."""

import math
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from exo.api.access_callers import Caller
from exo.api.access_gate import AccessRefused
from exo.api.access_keys import PlainKey
from exo.api.access_meter import TELL_INTERVAL_S, KeyMeter
from exo.api.access_quotas import UsedUp, add_usage, present_usage, sum_usages, used_up
from exo.api.access_telling import ProfileVoice
from exo.api.schemas.access import AuditList
from exo.api.schemas.problems import OpenAIError
from exo.shared.apply import apply_telemetry
from exo.shared.types.access import KeyId, KeyLimits, KeyUsage
from exo.shared.types.devices import MemoryProfile, NodePerformanceProfile, SystemProfile
from exo.shared.types.events import (
    KeyDeleted,
    KeyLimited,
    NodeProfileUpdated,
    StageProgressed,
    TelemetryFrame,
)
from exo.shared.types.ids import InstanceId, NodeId
from exo.shared.types.instances import StageProgress
from exo.shared.types.state import State
from support.access_stories import key_created
from support.api_world import World, client_of, parse, ready_state
from support.coordinator import MemoryCoordinator
from support.states import fold

KEY = PlainKey(KeyId("abcd1234"), "secret")
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
TOKENS_OF_A_CHAT = 9
MIDNIGHT_S = 20_000 * 86400.0
PROFILE = NodePerformanceProfile(
    memory=MemoryProfile(ram_total=1, ram_available=0, swap_total=0, swap_available=0), system=SystemProfile()
)

Counted = tuple[int, float, int, int]
"""On which node, when, how many requests and tokens."""

limits_of_a_key = st.builds(
    KeyLimits,
    requests_per_minute=st.none() | st.integers(1, 20),
    tokens_per_day=st.none() | st.integers(1, 20),
)
moments = st.sampled_from([0.0, 59.999, 60.0, 61.5, 119.0, 86399.5, 86400.0, 86460.0, 3 * 86400.0])
counted = st.lists(st.tuples(st.integers(0, 2), moments, st.integers(0, 4), st.integers(0, 9)), max_size=20)


def naive(events: list[Counted], limits: KeyLimits, now_s: float) -> UsedUp | None:
    """Look at everything that ever happened."""
    requests = sum(one[2] for one in events if math.floor(one[1] / 60) == math.floor(now_s / 60))
    tokens = sum(one[3] for one in events if math.floor(one[1] / 86400) == math.floor(now_s / 86400))
    next_day_s = next(float(day * 86400) for day in range(10) if day * 86400 > now_s)
    next_minute_s = next(float(minute * 60) for minute in range(10 * 1440) if minute * 60 > now_s)
    if limits.tokens_per_day is not None and tokens >= limits.tokens_per_day:
        code, limit, used, free_at_s = "tokens_per_day_used_up", limits.tokens_per_day, tokens, next_day_s
    elif limits.requests_per_minute is not None and requests >= limits.requests_per_minute:
        code, limit, used = "requests_per_minute_used_up", limits.requests_per_minute, requests
        free_at_s = next_minute_s
    else:
        return None
    return UsedUp(code=code, limit=limit, used=used, free_at_s=free_at_s, wait_s=math.ceil(free_at_s - now_s))


@given(counted, limits_of_a_key, moments)
def test_what_several_nodes_count_is_what_a_look_at_everything_finds(
    events: list[Counted], limits: KeyLimits, now_s: float
) -> None:
    events = sorted((one for one in events if one[1] <= now_s), key=lambda one: one[1])
    nodes: dict[int, KeyUsage] = {}
    for node, at_s, requests, tokens in events:
        nodes[node] = add_usage(nodes.get(node), at_s, requests=requests, tokens=tokens)
    assert used_up(limits, sum_usages(nodes.values(), now_s), now_s) == naive(events, limits, now_s)


def test_a_minute_and_a_day_that_are_over_count_nothing() -> None:
    used = add_usage(None, MIDNIGHT_S - 1, requests=2, tokens=3)
    assert (used.requests, used.tokens) == (2, 3)
    later = present_usage(used, MIDNIGHT_S)
    assert (later.requests, later.tokens, later.day) == (0, 0, used.day + 1)
    same_day = present_usage(add_usage(None, MIDNIGHT_S, requests=2, tokens=3), MIDNIGHT_S + 60)
    assert (same_day.requests, same_day.tokens) == (0, 3)


class Node:
    """One node with its meter, on a clock that tests move."""

    def __init__(self, name: str, state: State, home: Path) -> None:
        self.now_s = MIDNIGHT_S + 0.5
        self.coordinator = MemoryCoordinator(NodeId(name), state)
        self.voice = ProfileVoice(self.coordinator.publish)
        self.voice.publish([NodeProfileUpdated(node_id=NodeId(name), profile=PROFILE)])
        self.meter = KeyMeter(
            self.coordinator, self.voice.tell_key_usage, now_s=lambda: self.now_s, clock=lambda: self.now_s
        )
        self.world = World(state, home)
        self.world.coordinator = self.coordinator
        self.app: FastAPI = self.world.app()
        self.app.state.context.meter = self.meter
        self.frames_passed_on = 0

    def client(self) -> httpx.AsyncClient:
        return client_of(self.app, address="192.0.2.7", headers={"x-api-key": KEY.reveal()})

    def tell(self, other: "Node") -> None:
        """Have another node fold what this one published since it was last asked."""
        frames = [one for one in self.coordinator.history if isinstance(one, TelemetryFrame)]
        for frame in frames[self.frames_passed_on :]:
            other.coordinator.set_state(apply_telemetry(other.coordinator.state, frame))
        self.frames_passed_on = len(frames)


MakeNode = Callable[..., Node]


@pytest.fixture
def node(tmp_path: Path) -> MakeNode:
    def make(name: str = "a", *, requests: int | None = None, tokens: int | None = None) -> Node:
        limited = KeyLimited(key_id=KEY.key_id, requests_per_minute=requests, tokens_per_day=tokens)
        return Node(name, fold(ready_state(), key_created(KEY.secret, "infer"), limited), tmp_path / name)

    return make


def error_of(response: httpx.Response) -> tuple[int, str | None, str, str]:
    error = OpenAIError.model_validate_json(response.content).error
    return response.status_code, error.code, error.type, response.headers["retry-after"]


async def test_a_minute_has_so_many_requests_and_the_next_as_many_again(node: MakeNode) -> None:
    one = node(requests=2)
    async with one.client() as client:
        for _ in range(2):
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        refused = await client.post("/v1/chat/completions", json=CHAT)
        assert error_of(refused) == (429, "requests_per_minute_used_up", "rate_limit_error", "60")
        for text in ("2 requests a minute", "2 are used", "2024-10-04T00:01:00Z", "in 60 s"):
            assert text in refused.text
        assert len(one.world.client.requests) == 2
        assert (await client.post("/v1/completions", json={"model": "toy", "prompt": "x"})).status_code == 429
        assert (await client.get("/v1/models")).status_code == 200, "looking is no generation"
        one.now_s += 58
        assert error_of(await client.post("/v1/chat/completions", json=CHAT))[3] == "2"
        one.now_s += 2
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_answer_that_passes_the_days_tokens_ends_as_ever_and_the_next_is_refused(
    node: MakeNode, is_stream: bool
) -> None:
    one = node(tokens=TOKENS_OF_A_CHAT + 1)
    async with one.client() as client:
        for _ in range(2):
            answer = await client.post("/v1/chat/completions", json=CHAT | {"stream": is_stream})
            assert answer.status_code == 200 and '"finish_reason":"stop"' in answer.text
        used = one.meter.used(KEY.key_id)
        assert (used.requests, used.tokens) == (2, 2 * TOKENS_OF_A_CHAT)
        refused = await client.post("/v1/chat/completions", json=CHAT | {"stream": is_stream})
        assert error_of(refused) == (429, "tokens_per_day_used_up", "rate_limit_error", "86400")
        assert "10 tokens a day, and 18 are used" in refused.text and "2024-10-05T00:00:00Z" in refused.text
        one.now_s += 86400
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_nodes_add_up_what_each_of_them_counted(node: MakeNode) -> None:
    first, second = node("a", requests=3, tokens=1000), node("b", requests=3, tokens=1000)
    async with first.client() as to_first, second.client() as to_second:
        for _ in range(2):
            assert (await to_first.post("/v1/chat/completions", json=CHAT)).status_code == 200
        first.tell(second)
        assert second.meter.used(KEY.key_id) == first.meter.used(KEY.key_id)
        assert second.meter.used(KEY.key_id).tokens == 2 * TOKENS_OF_A_CHAT
        assert (await to_second.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await to_second.post("/v1/chat/completions", json=CHAT)).status_code == 429
        second.tell(first)
        refused = await to_first.post("/v1/chat/completions", json=CHAT)
        assert error_of(refused)[1] == "requests_per_minute_used_up" and "3 are used" in refused.text
        # The profile that is told every few seconds does not take back what was told in between.
        first.voice.publish([NodeProfileUpdated(node_id=NodeId("a"), profile=PROFILE)])
        first.tell(second)
        assert second.meter.used(KEY.key_id).requests == 3


async def test_other_keys_and_this_machine_are_not_counted(node: MakeNode) -> None:
    one = node(requests=1)
    other = key_created("other", "infer", key_id="bcde2345")
    one.coordinator.set_state(fold(one.coordinator.state, other))
    headers = {"x-api-key": PlainKey(KeyId("bcde2345"), "other").reveal()}
    async with (
        one.client() as limited,
        client_of(one.app) as local,
        client_of(one.app, address="192.0.2.7", headers=headers) as unlimited,
    ):
        assert (await limited.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert (await limited.post("/v1/chat/completions", json=CHAT)).status_code == 429
        for client in (local, unlimited, local, unlimited):
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert one.coordinator.state.live[NodeId("a")].key_usage.keys() == {KEY.key_id}


async def test_a_refusal_is_counted_and_written_down(node: MakeNode) -> None:
    one = node(requests=1)
    async with one.client() as client, client_of(one.app) as local:
        for _ in range(3):
            await client.post("/v1/chat/completions", json=CHAT)
        metrics = (await local.get("/metrics")).text
        lines = parse(AuditList, (await local.get("/audit")).content).entries
    assert 'exo_authentication_failures_total{reason="requests_per_minute_used_up"} 2.0' in metrics
    assert 'exo_requests_total{route="/v1/chat/completions",status="429"} 2.0' in metrics
    assert [(line.who, line.what, line.code) for line in lines] == [
        ("key abcd1234", "request", "requests_per_minute_used_up")
    ]


def test_tokens_are_told_once_a_second_and_at_the_end(node: MakeNode) -> None:
    one = node(tokens=100)

    def told() -> int:
        return one.coordinator.state.live[NodeId("a")].key_usage[KEY.key_id].tokens

    spending = one.meter.admit(
        Caller(kind="key", name=KEY.key_id, limits=one.coordinator.state.access.keys[KEY.key_id].limits)
    )
    spending.tokens(5)
    assert (told(), one.meter.used(KEY.key_id).tokens) == (0, 5)
    one.now_s += TELL_INTERVAL_S
    spending.tokens(1)
    assert told() == 6
    spending.tokens(2)
    assert told() == 6
    spending.end()
    assert told() == 8
    published = len(one.coordinator.published)
    spending.end()
    assert len(one.coordinator.published) == published, "nothing new, nothing told"


def test_what_is_over_and_keys_that_are_gone_are_no_longer_told(node: MakeNode) -> None:
    one = node(requests=9)
    caller = Caller(kind="key", name=KEY.key_id, limits=KeyLimits(requests_per_minute=9))
    one.meter.admit(caller)
    one.coordinator.set_state(fold(one.coordinator.state, KeyDeleted(key_id=KEY.key_id)))
    one.meter.admit(caller)
    assert one.coordinator.state.live[NodeId("a")].key_usage == {}


def test_a_quota_holds_before_the_first_profile_and_other_telemetry_passes_as_it_is() -> None:
    told: list[object] = []
    voice = ProfileVoice(told.extend)
    usage = {KEY.key_id: KeyUsage(1, 2, 3, 4)}
    voice.tell_key_usage(usage)
    assert told == []
    progressed = StageProgressed(
        instance_id=InstanceId("i"),
        generation=1,
        rank=0,
        progress=StageProgress(loaded_layers=1, total_layers=2),
    )
    voice.publish([progressed, NodeProfileUpdated(node_id=NodeId("a"), profile=PROFILE)])
    assert told == [
        progressed, NodeProfileUpdated(node_id=NodeId("a"), profile=PROFILE, key_usage=usage)
    ]  # fmt: skip
    usage[KEY.key_id] = KeyUsage(9, 9, 9, 9)
    voice.publish([NodeProfileUpdated(node_id=NodeId("a"), profile=PROFILE)])
    assert told[-1] == told[1], "a copy was told"


def test_a_meter_without_others_to_tell_counts_all_the_same() -> None:
    state = fold(ready_state(), key_created(KEY.secret, "infer"))
    meter = KeyMeter(MemoryCoordinator(NodeId("a"), state), now_s=lambda: MIDNIGHT_S, clock=lambda: 0.0)
    caller = Caller(kind="key", name=KEY.key_id, limits=KeyLimits(requests_per_minute=1))
    meter.admit(caller)
    with pytest.raises(AccessRefused, match="1 requests a minute"):
        meter.admit(caller)
