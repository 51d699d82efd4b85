"""The first stage's part: takes requests, runs their tokens through its layers, one step per request in turn."""

import time
from collections.abc import Callable, Hashable

from exo.dataplane.codec import Payload
from exo.dataplane.errors import ProtocolError
from exo.dataplane.flow import BACKLOG_BYTES_MAX
from exo.dataplane.frames import (
    Accepted,
    Activation,
    Cancel,
    Close,
    Consumed,
    Failed,
    Frame,
    Generate,
    Open,
    Pace,
    Rejected,
    ReplyTo,
    Sampled,
)
from exo.engines.base import Hidden, Stage
from exo.worker.runner.answer import Answer
from exo.worker.runner.messages import RunnerSpec
from exo.worker.runner.pace import PrefillPace
from exo.worker.runner.requests import Request, RequestQueue, RequestRefused, accept
from exo.worker.runner.role import Outbox, Role, StepFailures


class FirstStage(Role):
    """Rank 0: alone, or in front of others.

    Args:
        spec: What this process serves.
        stage: Loaded layers.
        outbox: Where frames go.
        clock: Seconds, for how long steps take.
    """

    def __init__(
        self, spec: RunnerSpec, stage: Stage, outbox: Outbox, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._spec = spec
        self._stage = stage
        self._outbox = outbox
        self._is_alone = spec.stage_count == 1
        self._queue = RequestQueue(spec.context_length * max(1, spec.concurrency))
        self._answers: dict[str, Answer] = {}
        """Only when this stage is alone: otherwise the last one makes the answers."""
        self._failures = StepFailures()
        self._clock = clock
        self._pace = PrefillPace(stage.prefill_tokens_max)
        self._may_run_ahead = True
        self._round: tuple[Request, float, float] | None = None
        """The only request's token that is on its way: when its step began, and how long this stage computed."""
        self.is_ready = False
        """Whether the stages behind are linked; until then requests are turned away."""

    @property
    def is_paced(self) -> bool:
        return self._is_alone or self._pace.is_told

    def linked(self) -> None:
        """The first word is the next stage's."""

    def slow_down(self, *, may_run_ahead: bool, prefill_share: float) -> None:
        self._may_run_ahead = may_run_ahead
        if self._stage.can_shorten_prefill:
            self._pace.shorten(prefill_share)

    @property
    def active_count(self) -> int:
        return len(self._queue)

    @property
    def has_work(self) -> bool:
        return self._queue.has_runnable() and self._outbox.next_backlog_bytes < BACKLOG_BYTES_MAX

    # Frames in.

    def from_client(self, client: Hashable, frame: Frame) -> None:
        match frame:
            case Generate():
                self._generate(client, frame)
            case Consumed():
                request = self._queue.get(frame.request_id)
                if request is not None and request.client == client:
                    request.consumed = max(request.consumed, min(frame.count, request.produced))
            case Cancel():
                request = self._queue.get(frame.request_id)
                if request is not None and request.client == client:
                    self._cancel(request)
            case _:
                raise ProtocolError(f"an API node sent {type(frame).__name__}, which has no place here")

    def _generate(self, client: Hashable, frame: Generate) -> None:
        try:
            if not self.is_ready:
                raise RequestRefused(
                    frame, 503, "not_ready", "the model's stages are not linked yet; try again"
                )
            if self._queue.get(frame.request_id) is not None:
                raise RequestRefused(
                    frame, 409, "duplicate_request", f"the request {frame.request_id} is running already"
                )
            if self._queue.is_full:
                raise RequestRefused(
                    frame,
                    429,
                    "queue_full",
                    f"{len(self._queue)} requests run or wait for this model, and no more can; try again later",
                )
            request = accept(self._spec, self._stage.tokenizer, client, frame)
        except RequestRefused as refused:
            self._outbox.to_client(client, refused.answer)
            return
        except Exception as error:  # A prompt that breaks the tokenizer is its sender's alone.
            self._outbox.to_client(
                client,
                Rejected(
                    request_id=frame.request_id,
                    status=400,
                    code="invalid_prompt",
                    message=f"the prompt cannot be turned into tokens: {error}",
                ),
            )
            return
        self._outbox.to_client(
            client, Accepted(request_id=frame.request_id, prompt_tokens=len(request.prompt))
        )
        self._queue.add(request)
        self._admit()

    def from_previous(self, frame: Frame, payload: Payload) -> None:
        match frame:
            case Sampled():
                request = self._queue.get(frame.request_id)
                if request is None:
                    return
                request.is_in_flight = False
                self._note_round(request, frame)
                self._count_token(request)
                if frame.is_finished:
                    self._end(request, Close(request_id=frame.request_id))
                else:
                    request.next_token_id = frame.token_id
            case Pace():
                self._pace.told(frame.prefill_tokens_max)
            case Failed():
                request = self._queue.get(frame.request_id)
                if request is not None:
                    self._fail(request, frame)
            case _:
                raise ProtocolError(f"the last stage sent {type(frame).__name__}, which has no place here")

    def client_lost(self, client: Hashable) -> None:
        for request in self._queue.all():
            if request.client == client:
                self._cancel(request)

    def reply_lost(self, reply_to: ReplyTo, reason: str) -> None:
        for request in self._queue.all():
            if request.frame.reply_to == reply_to:
                message = f"tokens cannot be sent to {reply_to}: {reason}"
                self._fail(
                    request, Failed(request_id=request.frame.request_id, code="reply_lost", message=message)
                )

    def fail_all(self, code: str, message: str) -> None:
        for request in self._queue.all():
            self._outbox.to_client(
                request.client, Failed(request_id=request.frame.request_id, code=code, message=message)
            )
            self._queue.remove(request)
            self._answers.pop(request.frame.request_id, None)
            self._stage.close(request.frame.request_id)

    # Steps.

    def step(self) -> None:
        request = self._queue.next_runnable()
        if request is None:
            return
        try:
            self._step(request)
        except Exception as error:  # An engine may raise anything; it ends this request, not the others.
            message = f"the engine failed in a step of this request: {error}"
            self._fail(
                request, Failed(request_id=request.frame.request_id, code="engine_error", message=message)
            )
            self._failures.failed(error)
        else:
            self._failures.worked()

    def _step(self, request: Request) -> None:
        # Up to its last token a prompt only fills the cache; the last one is run like every token that follows.
        inputs = request.prompt[request.position : len(request.prompt) - 1][: self._pace.tokens_max]
        is_prefill = bool(inputs)
        if not is_prefill:
            last = request.prompt[-1] if request.next_token_id is None else request.next_token_id
            inputs = [last]
        began_at = self._clock()
        if not self._is_alone:
            self._run_layers(request, inputs, wants_token=not is_prefill, began_at=began_at)
        elif is_prefill:
            self._stage.forward(request.frame.request_id, inputs, wants_token=False)
            request.position += len(inputs)
        else:
            is_clear = self._is_clear(request)
            self._run_model(request, inputs)
            took_s = self._clock() - began_at
            self.ledger.step_took(took_s, request.position)
            if is_clear:
                self.ledger.round_took(took_s)
        if is_prefill:
            self._pace.step_took(len(inputs), self._clock() - began_at)

    def _run_model(self, request: Request, inputs: list[int]) -> None:
        request_id = request.frame.request_id
        has_more = self._may_run_ahead and request.produced + 1 < request.max_tokens
        token_id = self._stage.generate(request_id, inputs, has_more=has_more)
        request.position += 1
        request.next_token_id = token_id
        self._count_token(request)
        chunk = self._answers[request_id].take(token_id)
        self._outbox.to_reply(request.frame.reply_to, chunk)
        if chunk.finish_reason is not None:
            self._forget(request)

    def _run_layers(self, request: Request, inputs: list[int], *, wants_token: bool, began_at: float) -> None:
        request_id = request.frame.request_id
        hidden = self._stage.forward(request_id, inputs, wants_token=wants_token)
        assert isinstance(hidden, Hidden)
        is_timed = wants_token and self.ledger.is_open
        if is_timed:
            took_s = self._clock() - began_at
            self.ledger.step_took(took_s, request.position + len(inputs))
            self._round = (request, began_at, took_s) if self._is_clear(request) else None
        header = Activation(
            request_id=request_id,
            position=request.position,
            shape=tuple(hidden.values.shape),
            dtype=hidden.dtype,
            wants_token=wants_token,
            computed_s=0.0 if is_timed else None,
        )
        self._outbox.to_next(header, hidden.to_bytes())
        request.position += len(inputs)
        request.is_in_flight = wants_token

    def _is_clear(self, request: Request) -> bool:
        """Say whether a token waits for nothing: the first one does for its prompt, and beside others each does."""
        return request.produced > 0 and len(self._queue) == 1

    def _note_round(self, request: Request, frame: Sampled) -> None:
        begun, self._round = self._round, None
        if begun is None or begun[0] is not request or len(self._queue) != 1 or frame.computed_s is None:
            return
        _, began_at, own_s = begun
        round_s = self._clock() - began_at
        hop_s = max(0.0, round_s - own_s - frame.computed_s) / self._spec.stage_count
        self.ledger.round_took(round_s, hop_s)

    def _count_token(self, request: Request) -> None:
        request.produced += 1
        self.tokens_total += 1

    # The requests' beginning and end.

    def _admit(self) -> None:
        for request in self._queue.admit():
            try:
                self._open(request)
            except Exception as error:  # There may be no memory for its cache.
                message = f"the engine cannot begin this request: {error}"
                self._fail(
                    request, Failed(request_id=request.frame.request_id, code="engine_error", message=message)
                )
                self._failures.failed(error)

    def _open(self, request: Request) -> None:
        frame = request.frame
        self._stage.open(frame.request_id, frame.sampling)
        if self._is_alone:
            self._answers[frame.request_id] = Answer(
                frame.request_id,
                self._stage.tokenizer,
                max_tokens=request.max_tokens,
                stop=frame.stop,
                ignore_end=frame.ignore_end,
            )
            return
        self._outbox.to_next(
            Open(
                request_id=frame.request_id,
                prompt_token_ids=tuple(request.prompt),
                max_tokens=request.max_tokens,
                stop=frame.stop,
                ignore_end=frame.ignore_end,
                sampling=frame.sampling,
                reply_to=frame.reply_to,
            )
        )

    def _cancel(self, request: Request) -> None:
        self._end(request, Cancel(request_id=request.frame.request_id))

    def _fail(self, request: Request, failed: Failed) -> None:
        self._outbox.to_client(request.client, failed)
        self._end(request, Close(request_id=request.frame.request_id))

    def _end(self, request: Request, last_word: Close | Cancel) -> None:
        if self._queue.is_active(request) and not self._is_alone:
            self._outbox.to_next(last_word)
        self._forget(request)

    def _forget(self, request: Request) -> None:
        self._queue.remove(request)
        self._answers.pop(request.frame.request_id, None)
        self._stage.close(request.frame.request_id)
        self._admit()
