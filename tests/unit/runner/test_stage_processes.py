"""Stages as they really run: processes, sockets, an engine. What a user would notice when one of them goes wrong."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import pytest_asyncio

from exo.cluster.discovery.addresses import own_hosts
from exo.cluster.discovery.interfaces import read_interfaces
from exo.dataplane.client import GenerationClient
from exo.dataplane.errors import GenerationFailedError, GenerationRejected, StageUnreachableError
from exo.dataplane.flow import WINDOW_CHUNKS
from exo.shared.types.generation import ChatMessage, Sampling
from exo.shared.types.ids import NodeId
from exo.worker.runner.messages import Heartbeat, LoadProgressed, RunnerLoaded, RunnerReady
from exo.worker.runner.supervisor import RunnerTimeouts
from support.data_hosts import member
from support.memberships import Membership
from support.models import write_random_model
from support.pipelines import SECRET, Pipeline, all_chunks, running_pipeline, stage_specs

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PROMPT = "The quick brown fox"
ENOUGH = 10_000
"""More tokens than any test takes: the context is longer than these take time."""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = {"max_position_embeddings": 32768}
    return write_random_model(tmp_path_factory.mktemp("models") / "random", config=config)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def single(model_dir: Path) -> AsyncIterator[Pipeline]:
    """One process that is the whole model; tests leave it as it was."""
    async with running_pipeline(stage_specs(model_dir, [6], context_length=ENOUGH)) as pipeline:
        yield pipeline


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three(model_dir: Path) -> AsyncIterator[Pipeline]:
    """A pipeline of three processes; tests leave it as it was."""
    async with running_pipeline(stage_specs(model_dir, [1, 3, 6], context_length=ENOUGH)) as pipeline:
        yield pipeline


def bare_tokens(model_dir: Path, prompt: str, count: int) -> list[int]:
    """Return what mlx-lm itself answers, greedily."""
    import mlx_lm
    from mlx_lm.generate import generate_step

    loaded: Any = mlx_lm.load(str(model_dir))
    model, tokenizer = loaded[0], loaded[1]
    import mlx.core as mx

    tokens = mx.array(tokenizer.encode(prompt))
    return [int(token) for token, _ in generate_step(tokens, model, max_tokens=count)]


async def test_it_says_how_far_it_is(single: Pipeline) -> None:
    kinds = [type(message) for message in single.messages[0] if not isinstance(message, Heartbeat)]
    assert kinds[0] is LoadProgressed
    assert kinds[-2:] == [RunnerLoaded, RunnerReady]
    progress = [
        (one.loaded_layers, one.total_layers) for one in single.messages[0] if isinstance(one, LoadProgressed)
    ]
    assert progress == sorted(progress)
    assert [loaded for loaded, _ in progress].count(0) == 1
    assert progress[-1] == (6, 6)
    loaded = next(one for one in single.messages[0] if isinstance(one, RunnerLoaded))
    name = loaded.device_description.removeprefix("MLX CPU backend, ")
    assert name and name != loaded.device_description


async def test_a_chat(single: Pipeline) -> None:
    generation = await single.start(
        messages=[ChatMessage(role="user", content="hello")], max_tokens=12, ignore_end=True
    )
    chunks = await all_chunks(generation)
    assert generation.prompt_tokens > 10
    assert [chunk.index for chunk in chunks] == list(range(12))
    assert [chunk.finish_reason for chunk in chunks] == [None] * 11 + ["length"]


async def test_one_process_three_and_the_plain_library_agree(
    single: Pipeline, three: Pipeline, model_dir: Path
) -> None:
    expected = bare_tokens(model_dir, PROMPT, 80)
    for pipeline in (single, three):
        chunks = await all_chunks(await pipeline.start(prompt=PROMPT, max_tokens=80, ignore_end=True))
        assert [chunk.token_id for chunk in chunks] == expected


async def test_three_processes_agree_with_one_on_long_prompts_and_sampling(
    single: Pipeline, three: Pipeline
) -> None:
    for prompt, sampling in (
        (PROMPT * 60, Sampling()),
        (PROMPT, Sampling(temperature=0.9, top_p=0.9, seed=4)),
    ):
        answers = [
            "".join(
                chunk.text
                for chunk in await all_chunks(
                    await pipeline.start(prompt=prompt, max_tokens=24, ignore_end=True, sampling=sampling)
                )
            )
            for pipeline in (single, three)
        ]
        assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", ["single", "three"])
async def test_requests_at_once_get_the_answers_they_get_alone(
    kind: str, request: pytest.FixtureRequest
) -> None:
    pipeline: Pipeline = request.getfixturevalue(kind)

    async def ask(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.0, seed=seed)
        generation = await pipeline.start(
            prompt=PROMPT * (seed + 1), max_tokens=20, ignore_end=True, sampling=sampling
        )
        return [chunk.token_id for chunk in await all_chunks(generation)]

    alone = [await ask(seed) for seed in range(4)]
    assert await asyncio.gather(*(ask(seed) for seed in range(4))) == alone


@pytest.mark.parametrize("kind", ["single", "three"])
async def test_a_slow_reader_is_waited_for(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline: Pipeline = request.getfixturevalue(kind)
    slow = await pipeline.start(prompt=PROMPT, max_tokens=WINDOW_CHUNKS + 40, ignore_end=True)
    # Another request that produces as many tokens afterwards shows that the stages could have gone on with the first.
    produced = _tokens_total(pipeline)
    await all_chunks(await pipeline.start(prompt=PROMPT, max_tokens=WINDOW_CHUNKS + 20, ignore_end=True))
    await pipeline.until(lambda: _tokens_total(pipeline) >= produced + WINDOW_CHUNKS)
    await all_chunks(await pipeline.start(prompt=PROMPT, max_tokens=60, ignore_end=True))
    first = await slow.next_batch()
    assert len(first) == WINDOW_CHUNKS
    assert len(await all_chunks(slow)) == 40


def _tokens_total(pipeline: Pipeline) -> int:
    beats = [message for message in pipeline.messages[0] if isinstance(message, Heartbeat)]
    return beats[-1].tokens_total


@pytest.mark.parametrize("kind", ["single", "three"])
async def test_cancelling_stops_the_stages(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline: Pipeline = request.getfixturevalue(kind)
    async with await pipeline.start(prompt=PROMPT, max_tokens=None, ignore_end=True) as generation:
        assert (await anext(generation)).index == 0
    ranks = range(len(pipeline.runners))
    marks = [len(pipeline.messages[rank]) for rank in ranks]

    def is_idle() -> bool:
        beats = [
            [message for message in pipeline.messages[rank][marks[rank] :] if isinstance(message, Heartbeat)]
            for rank in ranks
        ]
        return all(one and one[-1].requests_active == 0 for one in beats)

    await pipeline.until(is_idle)
    total = _tokens_total(pipeline)
    assert total < ENOUGH
    marks = [len(pipeline.messages[rank]) for rank in ranks]
    await pipeline.until(is_idle)
    assert _tokens_total(pipeline) == total


async def test_a_client_that_is_gone_is_noticed(single: Pipeline) -> None:
    async with GenerationClient(secret=SECRET, node_id=NodeId("other")) as other:
        mine, single.client = single.client, other
        try:
            await single.start(prompt=PROMPT, max_tokens=None, ignore_end=True)
        finally:
            single.client = mine
    mark = len(single.messages[0])
    await single.until(
        lambda: any(
            isinstance(message, Heartbeat) and message.requests_active == 0
            for message in single.messages[0][mark:]
        ),
    )


def _beats_after(pipeline: Pipeline, rank: int, mark: int) -> list[Heartbeat]:
    return [message for message in pipeline.messages[rank][mark:] if isinstance(message, Heartbeat)]


@pytest.mark.parametrize(("kind", "hot"), [("single", 0), ("three", 0), ("three", 2)])
async def test_a_stage_that_is_paused_is_alive_and_gives_the_same_answer_later(
    single: Pipeline, three: Pipeline, kind: str, hot: int
) -> None:
    pipeline = single if kind == "single" else three
    expected = [chunk.text for chunk in await all_chunks(await pipeline.start(prompt=PROMPT, max_tokens=24))]
    pipeline.runners[hot].set_work(0.0)
    generation = await pipeline.start(prompt=PROMPT, max_tokens=24)
    # Five heartbeats that say so: a second here, and its request waits all the while.
    mark = len(pipeline.messages[hot])

    def stands_still() -> bool:
        beats = _beats_after(pipeline, hot, mark)[-5:]
        return len(beats) == 5 and all(beat.requests_active == 1 for beat in beats)

    await pipeline.until(stands_still)
    beats = _beats_after(pipeline, hot, mark)[-5:]
    assert all(beat.step_running_s == 0 for beat in beats)
    assert (beats[0].busy_s, beats[0].tokens_total) == (beats[-1].busy_s, beats[-1].tokens_total)
    pipeline.runners[hot].set_work(0.5)
    got = [chunk.text for chunk in await all_chunks(generation)]
    pipeline.runners[hot].set_work(1.0)
    assert got == expected
    assert all(pipeline.failure(rank) is None for rank in range(len(pipeline.runners)))


async def test_a_stage_that_is_slowed_down_works_as_much_of_the_time_as_it_was_told(single: Pipeline) -> None:
    single.runners[0].set_work(0.2)
    try:
        async with await single.start(prompt=PROMPT, max_tokens=None, ignore_end=True) as generation:
            await anext(generation)
            mark = len(single.messages[0])
            began_s = time.monotonic()
            await single.until(lambda: len(_beats_after(single, 0, mark)) >= 11)
            elapsed_s = time.monotonic() - began_s
    finally:
        single.runners[0].set_work(1.0)
    beats = _beats_after(single, 0, mark)
    # Rests end late on a busy machine, never early: the share is a most.
    share = (beats[10].busy_s - beats[0].busy_s) / elapsed_s
    assert 0.02 < share < 0.3
    assert beats[10].tokens_total > beats[0].tokens_total


async def test_stop_strings_and_ends(single: Pipeline) -> None:
    whole = "".join(
        chunk.text for chunk in await all_chunks(await single.start(prompt=PROMPT, max_tokens=30))
    )
    stop = whole[5:8]
    chunks = await all_chunks(await single.start(prompt=PROMPT, max_tokens=30, stop=[stop]))
    assert "".join(chunk.text for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"


async def test_a_prompt_that_is_too_long_says_both_numbers(single: Pipeline) -> None:
    with pytest.raises(GenerationRejected) as refused:
        await single.start(token_ids=[1] * (ENOUGH + 5))
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")
    assert f"{ENOUGH + 5:,} tokens" in refused.value.message
    assert f"context length of {ENOUGH:,}" in refused.value.message


async def test_another_secret_gets_nowhere(single: Pipeline) -> None:
    async with GenerationClient(secret=b"wrong" * 7, node_id=NodeId("stranger")) as stranger:
        mine, single.client = single.client, stranger
        try:
            with pytest.raises(StageUnreachableError, match="secret"):
                await single.start(prompt=PROMPT)
        finally:
            single.client = mine


async def test_waiting_costs_nothing(single: Pipeline) -> None:
    assert single.runners[0].pid is not None
    process = psutil.Process(single.runners[0].pid)
    before = process.cpu_times()
    beats = len(single.messages[0])
    await single.until(lambda: len(single.messages[0]) >= beats + 10)
    after = process.cpu_times()
    # Ten heartbeats are two seconds here; on a busy machine the clock runs on, the processor time does not.
    assert after.user + after.system - before.user - before.system < 0.1


@pytest.mark.parametrize("victim", [0, 1, 2])
async def test_a_killed_stage_ends_the_request_at_once(model_dir: Path, victim: int) -> None:
    async with running_pipeline(stage_specs(model_dir, [2, 4, 6], context_length=ENOUGH)) as pipeline:
        generation = await pipeline.start(prompt=PROMPT, max_tokens=None, ignore_end=True)
        await anext(generation)
        pid = pipeline.runners[victim].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        with pytest.raises(GenerationFailedError, match=r"stage|lost") as failed:
            await all_chunks(generation)
        assert time.monotonic() - killed_at < 2
        assert failed.value.is_retriable
        reasons = await pipeline.until_failed([0, 1, 2])
        assert "SIGKILL" in reasons[victim].reason
        for rank in {0, 1, 2} - {victim}:
            assert "was lost" in reasons[rank].reason


async def test_a_stopped_stage_is_noticed_by_its_silence(model_dir: Path) -> None:
    timeouts = RunnerTimeouts(heartbeat_s=3.0)
    async with running_pipeline(stage_specs(model_dir, [3, 6]), timeouts=timeouts) as pipeline:
        generation = await pipeline.start(prompt=PROMPT, max_tokens=None, ignore_end=True)
        await anext(generation)
        pid = pipeline.runners[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        (failure,) = await pipeline.until_failed([1])
        assert "has not been heard of" in failure.reason
        with pytest.raises(GenerationFailedError):
            await all_chunks(generation)


async def test_a_truncated_file_is_a_permanent_failure_that_names_it(tmp_path: Path) -> None:
    directory = write_random_model(tmp_path / "model", shard_count=2)
    file = directory / "model-00002-of-00002.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    async with running_pipeline(stage_specs(directory, [6]), waits=False) as pipeline:
        (failure,) = await pipeline.until_failed([0], timeout_s=60)
    assert failure.is_permanent
    assert f"{file} is truncated" in failure.reason


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
async def test_stopping_ends_requests_with_a_word(model_dir: Path, number: signal.Signals | None) -> None:
    async with running_pipeline(stage_specs(model_dir, [6], context_length=ENOUGH)) as pipeline:
        generation = await pipeline.start(prompt=PROMPT, max_tokens=None, ignore_end=True)
        await anext(generation)
        if number is None:
            await pipeline.runners[0].stop()
        else:
            assert pipeline.runners[0].pid is not None
            os.kill(pipeline.runners[0].pid, number)
        with pytest.raises(GenerationFailedError, match="being stopped") as failed:
            await all_chunks(generation)
        assert failed.value.code == "stopped"
        if number is not None:
            (failure,) = await pipeline.until_failed([0])
            assert "exit code 0" in failure.reason


async def test_stopping_while_it_loads(model_dir: Path) -> None:
    async with running_pipeline(stage_specs(model_dir, [6]), waits=False) as pipeline:
        await pipeline.until(lambda: bool(pipeline.messages[0]))
        began = time.monotonic()
        await pipeline.runners[0].stop()
        assert time.monotonic() - began < 2
    assert pipeline.failure(0) is None


PARENT = """
import asyncio, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from support.pipelines import running_pipeline, stage_specs

async def main():
    async with running_pipeline(stage_specs(Path({model!r}), [3, 6])) as pipeline:
        print(*(runner.pid for runner in pipeline.runners), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_a_killed_parent_takes_its_stages_along(model_dir: Path) -> None:
    tests = Path(__file__).parents[2]
    code = PARENT.format(paths=[str(tests), str(tests.parent / "src")], model=str(model_dir))
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    try:
        assert parent.stdout is not None
        async with asyncio.timeout(60):
            stages = [psutil.Process(int(pid)) for pid in (await parent.stdout.readline()).split()]
        assert len(stages) == 2
        parent.kill()
        await parent.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, stages, 10)
        assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    finally:
        if parent.returncode is None:
            parent.kill()
            await parent.wait()


async def test_stages_on_addresses_of_a_network_answer_over_tls(
    single: Pipeline, model_dir: Path, tmp_path: Path
) -> None:
    hosts = own_hosts(read_interfaces())
    if not hosts:
        pytest.skip("this host has no address but loopback")
    membership = Membership(tmp_path)
    specs = [
        msgspec.structs.replace(
            spec,
            data_host="0.0.0.0",
            advertised_host=hosts[0],
            # Nobody can mistake these for processes of one user: certificates are all that they share.
            secret=f"secret of {spec.node_id}".encode(),
            trust=member(membership, spec.node_id),
            stage_node_ids=(NodeId("node-0"), NodeId("node-1")),
        )
        for spec in stage_specs(model_dir, [3, 6], context_length=ENOUGH)
    ]
    client = GenerationClient(secret=b"secret of api", node_id=NodeId("api"))
    client.set_identity(member(membership, "api").identity)
    await client.widen("0.0.0.0", advertised_host=hosts[0])
    async with running_pipeline(specs, client=client) as pipeline:
        assert {address.host for address in pipeline.addresses.values()} == {hosts[0]}
        chunks = await all_chunks(await pipeline.start(prompt=PROMPT, max_tokens=20))
        expected = await all_chunks(await single.start(prompt=PROMPT, max_tokens=20))
        assert [chunk.token_id for chunk in chunks] == [chunk.token_id for chunk in expected]
        for runner in pipeline.runners:
            assert runner.pid is not None
            process = psutil.Process(runner.pid)
            shown = " ".join([*process.cmdline(), *process.environ().values()])
            assert "PRIVATE KEY" not in shown
            assert "node.key" not in shown
        client.set_revoked(node_ids=["node-0"], serials=[])
        with pytest.raises(StageUnreachableError, match="was revoked"):
            await pipeline.start(prompt=PROMPT, max_tokens=20)
        client.set_revoked(node_ids=[], serials=[])
        pipeline.node_ids = (NodeId("node-1"), NodeId("node-0"))
        with pytest.raises(StageUnreachableError, match="is the node node-0, and node-1 should be there"):
            await pipeline.start(prompt=PROMPT, max_tokens=20)


async def test_two_stages_of_one_node_and_one_of_another_answer_as_one(
    single: Pipeline, model_dir: Path, tmp_path: Path
) -> None:
    hosts = own_hosts(read_interfaces())
    if not hosts:
        pytest.skip("this host has no address but loopback")
    membership = Membership(tmp_path)
    nodes = (NodeId("node-0"), NodeId("node-0"), NodeId("node-1"))
    specs = [
        msgspec.structs.replace(
            spec,
            node_id=node_id,
            data_host="0.0.0.0",
            advertised_host=hosts[0],
            secret=f"secret of {node_id}".encode(),
            trust=member(membership, node_id),
            stage_node_ids=nodes,
        )
        for spec, node_id in zip(stage_specs(model_dir, [2, 4, 6], context_length=ENOUGH), nodes, strict=True)
    ]
    client = GenerationClient(secret=b"secret of api", node_id=NodeId("api"))
    client.set_identity(member(membership, "api").identity)
    await client.widen("0.0.0.0", advertised_host=hosts[0])
    async with running_pipeline(specs, client=client) as pipeline:
        chunks = await all_chunks(await pipeline.start(prompt=PROMPT, max_tokens=20))
        expected = await all_chunks(await single.start(prompt=PROMPT, max_tokens=20))
        assert [chunk.token_id for chunk in chunks] == [chunk.token_id for chunk in expected]
