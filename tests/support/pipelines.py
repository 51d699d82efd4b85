"""Real stage processes of one model, linked and ready, with a client to ask them."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from exo.dataplane.client import GenerationClient
from exo.dataplane.frames import TokenChunk
from exo.dataplane.generation import Generation, GenerationRequest
from exo.shared.types.generation import ChatMessage, Sampling
from exo.shared.types.ids import InstanceId, NodeId, RequestId
from exo.shared.types.nodes import HostPort
from exo.worker.runner.messages import FromChild, RunnerFailed, RunnerLoaded, RunnerReady, RunnerSpec
from exo.worker.runner.supervisor import RunnerTimeouts, StageRunner

SECRET = b"pipeline" * 4
START_TIMEOUT_S = 90.0


def stage_specs(
    model_dir: Path, ends: Sequence[int], *, context_length: int = 2048, concurrency: int = 4
) -> list[RunnerSpec]:
    """Return the specs of a pipeline whose stages end before these layers."""
    starts = [0, *ends[:-1]]
    return [
        RunnerSpec(
            node_id=NodeId(f"node-{rank}"),
            instance_id=InstanceId("instance"),
            generation=1,
            rank=rank,
            stage_count=len(ends),
            engine="mlx",
            model_id="model",
            model_dir=str(model_dir),
            start_layer=start,
            end_layer=end,
            device="cpu:0",
            context_length=context_length,
            concurrency=concurrency,
            data_host="127.0.0.1",
            secret=SECRET,
            heartbeat_interval_s=0.2,
        )
        for rank, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


class Pipeline:
    """Stage processes under their supervisors."""

    def __init__(
        self, specs: Sequence[RunnerSpec], client: GenerationClient, timeouts: RunnerTimeouts
    ) -> None:
        self.client = client
        self.node_ids = tuple(spec.node_id for spec in specs)
        self.runners = [StageRunner(spec, timeouts=timeouts) for spec in specs]
        self.messages: list[list[FromChild]] = [[] for _ in specs]
        self.addresses: dict[int, HostPort] = {}
        self._ready: set[int] = set()
        self._changed = asyncio.Event()
        self._names = itertools.count()

    def heard(self, rank: int, message: FromChild) -> None:
        """Take a message, and link the stages once all are loaded."""
        self.messages[rank].append(message)
        if isinstance(message, RunnerLoaded):
            self.addresses[rank] = message.address
            if len(self.addresses) == len(self.runners):
                for runner in self.runners:
                    runner.link([self.addresses[other] for other in range(len(self.runners))])
        elif isinstance(message, RunnerReady):
            self._ready.add(rank)
        self._changed.set()

    def failure(self, rank: int) -> RunnerFailed | None:
        """Return why a stage ended, if it did."""
        return next((one for one in self.messages[rank] if isinstance(one, RunnerFailed)), None)

    async def until_failed(self, ranks: Sequence[int], timeout_s: float = 60) -> list[RunnerFailed]:
        """Wait until these stages have said why they ended."""

        def found() -> list[RunnerFailed]:
            return [failure for rank in ranks if (failure := self.failure(rank)) is not None]

        await self.until(lambda: len(found()) == len(ranks), timeout_s)
        return found()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until something holds, looking whenever a stage has said something."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def until_ready(self) -> None:
        """Wait until every stage serves."""

        def are_ready() -> bool:
            for rank in range(len(self.runners)):
                failure = self.failure(rank)
                assert failure is None, f"stage {rank}: {failure}"
            return len(self._ready) == len(self.runners)

        await self.until(are_ready, START_TIMEOUT_S)

    async def start(
        self,
        *,
        messages: Sequence[ChatMessage] | None = None,
        prompt: str | None = None,
        token_ids: Sequence[int] | None = None,
        max_tokens: int | None = 32,
        stop: Sequence[str] = (),
        ignore_end: bool = False,
        sampling: Sampling = Sampling(),
    ) -> Generation:
        """Ask for tokens."""
        return await self.client.start(
            self.addresses[0],
            GenerationRequest(
                request_id=RequestId(f"request-{next(self._names)}"),
                instance_id=InstanceId("instance"),
                generation=1,
                node_ids=self.node_ids,
                messages=None if messages is None else tuple(messages),
                prompt=prompt,
                prompt_token_ids=None if token_ids is None else tuple(token_ids),
                max_tokens=max_tokens,
                stop=tuple(stop),
                ignore_end=ignore_end,
                sampling=sampling,
            ),
        )


async def all_chunks(generation: Generation, timeout_s: float = 60) -> list[TokenChunk]:
    """Return everything a generation gives."""
    async with asyncio.timeout(timeout_s):
        return [chunk async for chunk in generation]


@asynccontextmanager
async def running_pipeline(
    specs: Sequence[RunnerSpec],
    *,
    timeouts: RunnerTimeouts | None = None,
    waits: bool = True,
    client: GenerationClient | None = None,
) -> AsyncIterator[Pipeline]:
    """Run stage processes; they are gone afterwards."""
    async with client or GenerationClient(secret=SECRET, node_id=NodeId("api")) as client:
        pipeline = Pipeline(specs, client, timeouts or RunnerTimeouts())
        async with asyncio.TaskGroup() as tasks:
            for rank, runner in enumerate(pipeline.runners):
                tasks.create_task(runner.run(lambda message, rank=rank: pipeline.heard(rank, message)))
            try:
                if waits:
                    await pipeline.until_ready()
                yield pipeline
            finally:
                await asyncio.gather(*(runner.stop() for runner in pipeline.runners))
