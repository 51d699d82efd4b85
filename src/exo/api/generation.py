"""One generation as a route sees it: started on an instance, counted, timed, and ended whatever happens."""

import time
from typing import Any, Protocol

from exo.api.access_meter import Spending
from exo.api.disconnect import shutting_down
from exo.api.errors import ApiError
from exo.dataplane.errors import GenerationFailedError, GenerationRejected, StageUnreachableError
from exo.dataplane.frames import TokenChunk
from exo.dataplane.generation import GenerationRequest
from exo.shared.types.ids import InstanceId
from exo.shared.types.nodes import HostPort


class TokenStream(Protocol):
    """What a route needs of `exo.dataplane.generation.Generation`."""

    prompt_tokens: int

    async def next_batch(self) -> list[TokenChunk]:
        """Return all chunks that wait, at least one; empty at the end."""
        ...

    async def cancel(self) -> None:
        """Have the stages stop; without effect when it is over."""
        ...


class TokenClient(Protocol):
    """What the API needs of `exo.dataplane.client.GenerationClient`."""

    async def start(self, first_stage: HostPort, request: GenerationRequest) -> TokenStream:
        """Ask for tokens; returns when the first stage has accepted."""
        ...


class RunningGeneration:
    """A generation that was accepted, with its numbers. Times are `time.perf_counter` seconds.

    It ends where it would end, also when it takes more than its key's quota of tokens has left: the next is refused.
    """

    def __init__(
        self, stream: TokenStream, instance_id: InstanceId, arrived_s: float, spending: Spending
    ) -> None:
        self._stream = stream
        self._instance_id = instance_id
        self._arrived_s = arrived_s
        self._first_token_s: float | None = None
        self._first_count = 0
        """Tokens that came at once with the first: no time passed between them that would tell a speed."""
        self._last_token_s = 0.0
        self._is_closing = False
        self.prompt_tokens = stream.prompt_tokens
        self.completion_tokens = 0
        self.is_complete = False
        self._spending = spending
        spending.tokens(stream.prompt_tokens)

    async def next_batch(self) -> list[TokenChunk]:
        """Return all chunks that wait, at least one; empty at the end.

        Raises:
            ApiError: The generation ended with an error.
        """
        if self.is_complete:
            return []
        try:
            batch = await self._stream.next_batch()
        except GenerationFailedError as error:
            if not error.is_retriable:
                raise ApiError(500, error.code, error.message) from error
            raise ApiError(503, error.code, _to_be_asked_again(error.message)) from error
        if not batch:
            if self._is_closing:
                raise shutting_down()
            raise ApiError(503, "cancelled", "the answer was cut off before its end; try again")
        self._last_token_s = time.perf_counter()
        if self._first_token_s is None:
            self._first_token_s = self._last_token_s
            self._first_count = len(batch)
        self.completion_tokens += len(batch)
        self._spending.tokens(len(batch))
        finish_reason = batch[-1].finish_reason
        if finish_reason is not None:
            if finish_reason not in ("stop", "length"):
                raise ApiError(
                    503, str(finish_reason), "the model's instance stopped in mid-answer; try again"
                )
            self.is_complete = True
        return batch

    async def cancel(self) -> None:
        """Have the stages stop; without effect when it is over."""
        self._spending.end()
        await self._stream.cancel()

    async def close(self) -> None:
        """End it because the server stops: who reads it gets an error."""
        self._is_closing = True
        await self._stream.cancel()

    @property
    def time_to_first_token_s(self) -> float | None:
        """From the request's arrival to its first token; None when there was none."""
        return None if self._first_token_s is None else self._first_token_s - self._arrived_s

    @property
    def time_per_output_token_s(self) -> float | None:
        """Mean time between tokens after those that came first; None when there were no more."""
        later = self.completion_tokens - self._first_count
        if self._first_token_s is None or later < 1:
            return None
        return (self._last_token_s - self._first_token_s) / later

    def usage(self) -> dict[str, Any]:
        """Return the shape `Usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def timings(self) -> dict[str, Any]:
        """Return the shape `Timings`."""
        per_token_s = self.time_per_output_token_s
        to_first_s = self.time_to_first_token_s
        return {
            "instance_id": self._instance_id,
            "time_to_first_token_s": None if to_first_s is None else round(to_first_s, 6),
            "tokens_per_s": round(1 / per_token_s, 2) if per_token_s else None,
        }


async def start_stream(client: TokenClient, first_stage: HostPort, request: GenerationRequest) -> TokenStream:
    """Ask the first stage for tokens; returns when it has accepted.

    Raises:
        ApiError: It refuses, or cannot be reached.
    """
    try:
        return await client.start(first_stage, request)
    except GenerationRejected as error:
        raise ApiError(error.status, error.code, error.message) from error
    except StageUnreachableError as error:
        raise ApiError(503, "stage_unreachable", _to_be_asked_again(error.message)) from error


def _to_be_asked_again(message: str) -> str:
    """End with the next step: once its stages are there again, the model answers, here or elsewhere."""
    return message if "again" in message else f"{message}; ask again in a few seconds"
