"""The part of every stage but the first: runs activations in the order they come; the last one makes the answers."""

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from exo.dataplane.codec import Payload
from exo.dataplane.errors import ProtocolError
from exo.dataplane.flow import ACTIVATIONS_WAITING_MAX, BACKLOG_BYTES_MAX
from exo.dataplane.frames import Activation, Cancel, Close, Failed, Frame, Open, Pace, ReplyTo, Sampled
from exo.engines.base import Hidden, Stage
from exo.shared.types.ids import RequestId
from exo.worker.runner.answer import Answer
from exo.worker.runner.messages import RunnerSpec
from exo.worker.runner.pace import PrefillPace
from exo.worker.runner.role import Outbox, Role, StageBrokenError, StepFailures


@dataclass
class _Sequence:
    opened: Open
    answer: Answer | None
    """On the last stage."""
    position: int = 0


class FollowingStage(Role):
    """Rank 1 and above.

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
        self._stage = stage
        self._outbox = outbox
        self._is_last = spec.rank == spec.stage_count - 1
        self._sequences: dict[RequestId, _Sequence] = {}
        self._waiting: deque[tuple[Activation, Payload]] = deque()
        self._failures = StepFailures()
        self._clock = clock
        self._pace = PrefillPace(stage.prefill_tokens_max)
        self._knows_pace_before = spec.rank == 1  # Nobody before it but the one that is to be told.
        self._is_linked = False

    @property
    def is_paced(self) -> bool:
        return True

    def linked(self) -> None:
        self._is_linked = True
        self._tell_pace()

    def slow_down(self, *, may_run_ahead: bool, prefill_share: float) -> None:
        if self._stage.can_shorten_prefill and self._pace.shorten(prefill_share):
            self._tell_pace()

    def _tell_pace(self) -> None:
        if self._is_linked and self._knows_pace_before:
            self._outbox.to_next(Pace(prefill_tokens_max=self._pace.tokens_max))

    @property
    def active_count(self) -> int:
        return len(self._sequences)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) and self._outbox.next_backlog_bytes < BACKLOG_BYTES_MAX

    def from_previous(self, frame: Frame, payload: Payload) -> None:
        match frame:
            case Activation():
                if frame.request_id in self._sequences:
                    self._waiting.append((frame, payload))
                    if len(self._waiting) >= ACTIVATIONS_WAITING_MAX:
                        self._outbox.hold_previous(True)
            case Pace():
                self._pace.told(frame.prefill_tokens_max)
                self._knows_pace_before = True
                self._tell_pace()
            case Open():
                self._open(frame)
            case Close() | Cancel():
                self._forget(frame.request_id)
                if not self._is_last:
                    self._outbox.to_next(frame)
            case Failed():
                # From a stage before this one; the last stage is the one that can tell the first.
                self._forget(frame.request_id)
                self._outbox.to_next(frame)
            case _:
                raise ProtocolError(f"the stage before sent {type(frame).__name__}, which has no place here")

    def _open(self, frame: Open) -> None:
        answer = None
        try:
            self._stage.open(frame.request_id, frame.sampling)
            if self._is_last:
                answer = Answer(
                    frame.request_id,
                    self._stage.tokenizer,
                    max_tokens=frame.max_tokens,
                    stop=frame.stop,
                    ignore_end=frame.ignore_end,
                )
        except Exception as error:  # There may be no memory for its cache.
            self._fail(frame.request_id, f"the engine cannot begin this request: {error}")
            self._failures.failed(error)
            return
        self._sequences[frame.request_id] = _Sequence(frame, answer)
        if not self._is_last:
            self._outbox.to_next(frame)

    def step(self) -> None:
        frame, payload = self._waiting.popleft()
        if len(self._waiting) < ACTIVATIONS_WAITING_MAX:
            self._outbox.hold_previous(False)
        sequence = self._sequences[frame.request_id]
        if frame.position != sequence.position:
            raise StageBrokenError(
                f"the stage before sent position {frame.position} of a request where {sequence.position} follows"
            )
        try:
            self._step(frame, payload, sequence)
        except Exception as error:  # An engine may raise anything; it ends this request, not the others.
            self._forget(frame.request_id)
            self._fail(frame.request_id, f"the engine failed in a step of this request: {error}")
            self._failures.failed(error)
        else:
            self._failures.worked()

    def _step(self, frame: Activation, payload: Payload, sequence: _Sequence) -> None:
        inputs = Hidden.from_bytes(payload, frame.shape, frame.dtype)
        began_at = self._clock()
        output = self._stage.forward(frame.request_id, inputs, wants_token=frame.wants_token)
        sequence.position += frame.shape[1]
        if self._pace.step_took(frame.shape[1], self._clock() - began_at):
            self._tell_pace()
        if isinstance(output, Hidden):
            header = Activation(
                request_id=frame.request_id,
                position=frame.position,
                shape=tuple(output.values.shape),
                dtype=output.dtype,
                wants_token=frame.wants_token,
                computed_s=self._computed_s(frame, sequence, began_at) if frame.wants_token else None,
            )
            self._outbox.to_next(header, output.to_bytes())
        elif output is not None:
            self._token_chosen(frame, sequence, output, began_at)
        self.tokens_total += frame.wants_token

    def _computed_s(self, frame: Activation, sequence: _Sequence, began_at: float) -> float | None:
        """Note a decoding step that is done, and return how long the stages behind the first have computed so far."""
        took_s = self._clock() - began_at
        self.ledger.step_took(took_s, sequence.position)
        return frame.computed_s + took_s if self.ledger.is_open and frame.computed_s is not None else None

    def _token_chosen(self, frame: Activation, sequence: _Sequence, token_id: int, began_at: float) -> None:
        assert sequence.answer is not None
        chunk = sequence.answer.take(token_id)
        is_finished = chunk.finish_reason is not None
        # The first stage waits for this one; the client is a little further away in any case.
        self._outbox.to_next(
            Sampled(
                request_id=chunk.request_id,
                token_id=token_id,
                is_finished=is_finished,
                computed_s=self._computed_s(frame, sequence, began_at),
            )
        )
        self._outbox.to_reply(sequence.opened.reply_to, chunk)
        if is_finished:
            self._forget(chunk.request_id)

    def client_lost(self, client: Hashable) -> None:
        """No API node sends requests to this stage."""

    def reply_lost(self, reply_to: ReplyTo, reason: str) -> None:
        for request_id, sequence in list(self._sequences.items()):
            if sequence.opened.reply_to == reply_to:
                self._forget(request_id)
                self._fail(request_id, f"tokens cannot be sent to {reply_to}: {reason}", code="reply_lost")

    def fail_all(self, code: str, message: str) -> None:
        for request_id, sequence in list(self._sequences.items()):
            if self._is_last:
                self._outbox.to_reply(
                    sequence.opened.reply_to, Failed(request_id=request_id, code=code, message=message)
                )
            self._forget(request_id)

    def _fail(self, request_id: RequestId, message: str, *, code: str = "engine_error") -> None:
        self._outbox.to_next(Failed(request_id=request_id, code=code, message=message))

    def _forget(self, request_id: RequestId) -> None:
        self._sequences.pop(request_id, None)
        self._stage.close(request_id)
        if any(frame.request_id == request_id for frame, _ in self._waiting):
            self._waiting = deque(item for item in self._waiting if item[0].request_id != request_id)
            if len(self._waiting) < ACTIVATIONS_WAITING_MAX:
                self._outbox.hold_previous(False)
