"""One request's answer on the last stage: tokens become text, and something ends it."""

from collections.abc import Sequence

from exo.dataplane.frames import FinishReason, TokenChunk
from exo.engines.base import Tokenizer
from exo.shared.types.ids import RequestId
from exo.worker.runner.stop_text import StopText


class Answer:
    """Makes the chunks of one request.

    Args:
        request_id: Goes into every chunk.
        tokenizer: The model's own.
        max_tokens: The answer ends with this many, at least 1.
        stop: Strings that end the answer.
        ignore_end: Go on past the model's own end tokens.
    """

    def __init__(
        self,
        request_id: RequestId,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        stop: Sequence[str],
        ignore_end: bool,
    ) -> None:
        self._request_id = request_id
        self._end_token_ids = tokenizer.end_token_ids
        self._detokenizer = tokenizer.detokenizer()
        self._max_tokens = max_tokens
        self._stop = StopText(stop)
        self._ignore_end = ignore_end
        self._count = 0

    def take(self, token_id: int) -> TokenChunk:
        """Return the chunk for the next token; its `finish_reason` is set when it is the last one."""
        index = self._count
        self._count += 1
        text = ""
        is_stopped = False
        finish_reason: FinishReason | None = None
        if token_id not in self._end_token_ids:
            text, is_stopped = self._stop.push(self._detokenizer.add(token_id))
        elif not self._ignore_end:
            finish_reason = "stop"
        # An end token that is ignored is still a mark, not text.
        if is_stopped:
            finish_reason = "stop"
        elif finish_reason is None and self._count >= self._max_tokens:
            finish_reason = "length"
        if finish_reason is not None and not is_stopped:
            rest, is_stopped = self._stop.push(self._detokenizer.finish())
            text += rest if is_stopped else rest + self._stop.flush()
        return TokenChunk(
            request_id=self._request_id,
            index=index,
            token_id=token_id,
            text=text,
            finish_reason=finish_reason,
        )
