"""A generation client at the data plane's boundary that plays what a test wrote down."""

from collections.abc import Callable, Sequence

import anyio

from exo.dataplane.errors import DataPlaneError
from exo.dataplane.frames import TokenChunk
from exo.dataplane.generation import GenerationRequest
from exo.shared.types.generation import FinishReason
from exo.shared.types.ids import RequestId
from exo.shared.types.nodes import HostPort

Act = str | DataPlaneError | None
"""A token's text; an error that ends the generation; None: nothing more until it is cancelled."""


class ScriptedStream:
    """Hands out one chunk for each act, in batches of the size given."""

    def __init__(
        self, acts: Sequence[Act], *, finish_reason: FinishReason | None, batch_size: int, prompt_tokens: int
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.is_cancelled = False
        self.cancelled = anyio.Event()
        self.chunks_taken = 0
        self._acts = list(acts)
        self._finish_reason = finish_reason
        self._batch_size = batch_size

    async def next_batch(self) -> list[TokenChunk]:
        batch: list[TokenChunk] = []
        while self._acts and not self.is_cancelled and len(batch) < self._batch_size:
            act = self._acts[0]
            if not isinstance(act, str):
                break
            self._acts.pop(0)
            is_last = not self._acts
            batch.append(
                TokenChunk(
                    request_id=RequestId("scripted"),
                    index=self.chunks_taken + len(batch),
                    token_id=len(act),
                    text=act,
                    finish_reason=self._finish_reason if is_last else None,
                )
            )
        if not batch and self._acts and not self.is_cancelled:
            act = self._acts[0]
            if isinstance(act, DataPlaneError):
                raise act
            await self.cancelled.wait()
        await anyio.lowlevel.checkpoint()
        self.chunks_taken += len(batch)
        return batch

    async def cancel(self) -> None:
        self.is_cancelled = True
        self.cancelled.set()


class ScriptedClient:
    """Plays the same acts for every request, and keeps what it was asked.

    Args:
        acts: The tokens' texts; see `Act`.
        refusal: Raised in place of accepting.
    """

    def __init__(
        self,
        acts: Sequence[Act] = ("Hello", ", ", "world", ""),
        *,
        finish_reason: FinishReason | None = "stop",
        batch_size: int = 1,
        prompt_tokens: int = 5,
        refusal: DataPlaneError | None = None,
    ) -> None:
        self.acts = acts
        self.finish_reason: FinishReason | None = finish_reason
        self.batch_size = batch_size
        self.prompt_tokens = prompt_tokens
        self.refusal = refusal
        self.requests: list[tuple[HostPort, GenerationRequest]] = []
        self.streams: list[ScriptedStream] = []
        self.on_start: Callable[[], None] | None = None

    async def start(self, first_stage: HostPort, request: GenerationRequest) -> ScriptedStream:
        self.requests.append((first_stage, request))
        if self.on_start is not None:
            self.on_start()
        if self.refusal is not None:
            raise self.refusal
        stream = ScriptedStream(
            self.acts,
            finish_reason=self.finish_reason,
            batch_size=self.batch_size,
            prompt_tokens=self.prompt_tokens,
        )
        self.streams.append(stream)
        return stream
