"""Requests on the first stage: checked and tokenised on arrival, queued, admitted as far as memory goes."""

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from exo.dataplane.flow import WINDOW_CHUNKS
from exo.dataplane.frames import Generate, Rejected
from exo.engines.base import Tokenizer
from exo.engines.errors import PromptError
from exo.shared.types.generation import Sampling
from exo.worker.runner.messages import RunnerSpec

QUEUE_LENGTH_MAX = 64
STOP_STRINGS_MAX = 16


@dataclass(eq=False)
class Request:
    """A request that was accepted."""

    client: Hashable
    frame: Generate
    prompt: list[int]
    max_tokens: int
    position: int = 0
    """How many tokens the first stage has run."""
    next_token_id: int | None = None
    """What to continue with; None while the prompt is being run."""
    is_in_flight: bool = False
    """A step's result is still on its way through the pipeline."""
    produced: int = 0
    consumed: int = 0

    @property
    def reserved_tokens(self) -> int:
        """Room it may come to need in the KV cache."""
        return len(self.prompt) + self.max_tokens

    @property
    def is_runnable(self) -> bool:
        """Whether its next step can be run: its last one is done and its client keeps up."""
        return not self.is_in_flight and self.produced - self.consumed < WINDOW_CHUNKS


class RequestRefused(Exception):
    """Raised when a request is not accepted. `answer` tells the API node why."""

    def __init__(self, frame: Generate, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = Rejected(request_id=frame.request_id, status=status, code=code, message=message)


def accept(spec: RunnerSpec, tokenizer: Tokenizer, client: Hashable, frame: Generate) -> Request:
    """Check a request and turn its prompt into tokens.

    Raises:
        RequestRefused: It is for another generation, makes no sense, or does not fit the context.
    """
    if (frame.instance_id, frame.generation) != (spec.instance_id, spec.generation):
        raise RequestRefused(
            frame,
            409,
            "wrong_generation",
            f"this stage serves generation {spec.generation} of {spec.instance_id}, not generation "
            f"{frame.generation} of {frame.instance_id}; try again",
        )
    problem = _problem(frame)
    if problem is not None:
        raise RequestRefused(frame, 400, "invalid_request", problem)
    prompt = _tokens(tokenizer, frame)
    if not prompt:
        raise RequestRefused(frame, 400, "empty_prompt", "the prompt has no tokens; send at least one word")
    room = spec.context_length - len(prompt)
    if room < 1:
        raise RequestRefused(
            frame,
            400,
            "context_length_exceeded",
            f"the prompt has {len(prompt):,} tokens, and with at least one token of answer that is "
            f"{len(prompt) + 1 - spec.context_length:,} more than the context length of {spec.context_length:,}; "
            "send a shorter prompt",
        )
    max_tokens = room if frame.max_tokens is None else min(frame.max_tokens, room)
    return Request(client, frame, prompt, max_tokens)


def _problem(frame: Generate) -> str | None:
    given = [frame.messages is not None, frame.prompt is not None, frame.prompt_token_ids is not None]
    if sum(given) != 1:
        return "a request has exactly one of messages, prompt and prompt_token_ids"
    if frame.max_tokens is not None and frame.max_tokens < 1:
        return f"max_tokens is {frame.max_tokens}; it has to be at least 1"
    if len(frame.stop) > STOP_STRINGS_MAX:
        return f"there are {len(frame.stop)} stop strings; at most {STOP_STRINGS_MAX} are possible"
    return _sampling_problem(frame.sampling)


def _sampling_problem(sampling: Sampling) -> str | None:
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        return f"temperature is {sampling.temperature}; it has to be 0 or more"
    if not 0 < sampling.top_p <= 1:
        return f"top_p is {sampling.top_p}; it has to be above 0 and at most 1"
    if sampling.top_k < 0:
        return f"top_k is {sampling.top_k}; it has to be 0 (off) or more"
    if not 0 <= sampling.min_p <= 1:
        return f"min_p is {sampling.min_p}; it has to be from 0 to 1"
    return None


def _tokens(tokenizer: Tokenizer, frame: Generate) -> list[int]:
    try:
        if frame.messages is not None:
            return tokenizer.encode_chat(frame.messages)
        if frame.prompt is not None:
            return tokenizer.encode_prompt(frame.prompt)
    except PromptError as error:
        raise RequestRefused(frame, 400, "invalid_prompt", error.message) from error
    token_ids = list(frame.prompt_token_ids or ())
    for token_id in token_ids:
        if not 0 <= token_id < tokenizer.vocabulary_size:
            raise RequestRefused(
                frame,
                400,
                "invalid_prompt",
                f"there is no token {token_id}; the model's run from 0 to {tokenizer.vocabulary_size - 1}",
            )
    return token_ids


@dataclass
class RequestQueue:
    """Waiting requests in order of arrival, and those whose turn comes round.

    Attributes:
        budget_tokens: Room in the KV cache that was planned for. The next in line waits until what it may come to
            need is free; one request always runs, however long.
    """

    budget_tokens: int
    _waiting: deque[Request] = field(default_factory=deque[Request])
    _active: deque[Request] = field(default_factory=deque[Request])
    _by_id: dict[str, Request] = field(default_factory=dict[str, Request])

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def is_full(self) -> bool:
        """Whether no more can wait."""
        return len(self._waiting) >= QUEUE_LENGTH_MAX

    def get(self, request_id: str) -> Request | None:
        """Return a request that waits or runs."""
        return self._by_id.get(request_id)

    def all(self) -> list[Request]:
        """Return every request that waits or runs."""
        return list(self._by_id.values())

    def is_active(self, request: Request) -> bool:
        """Say whether it has been admitted."""
        return request in self._active

    def add(self, request: Request) -> None:
        """Put a request at the end of the line."""
        self._by_id[request.frame.request_id] = request
        self._waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget a request; without effect when it is forgotten already."""
        if self._by_id.pop(request.frame.request_id, None) is None:
            return
        if request in self._active:
            self._active.remove(request)
        else:
            self._waiting.remove(request)

    def admit(self) -> list[Request]:
        """Move those that fit from the line to the ones that run, and return them."""
        admitted: list[Request] = []
        reserved = sum(request.reserved_tokens for request in self._active) if self._waiting else 0
        while self._waiting:
            needed = self._waiting[0].reserved_tokens
            if self._active and reserved + needed > self.budget_tokens:
                break
            reserved += needed
            request = self._waiting.popleft()
            self._active.append(request)
            admitted.append(request)
        return admitted

    def has_runnable(self) -> bool:
        """Say whether `next_runnable` would return a request."""
        return any(request.is_runnable for request in self._active)

    def next_runnable(self) -> Request | None:
        """Return the request whose turn it is, and put it last for the next time."""
        for _ in range(len(self._active)):
            request = self._active[0]
            self._active.rotate(-1)
            if request.is_runnable:
                return request
        return None
