"""A streamed answer's events as bytes. What does not change is encoded once per request; per token, only its text."""

from typing import Any

import msgspec

from exo.dataplane.frames import TokenChunk

Fields = dict[str, Any]

DONE = b"data: [DONE]\n\n"

_encode_json = msgspec.json.Encoder().encode
_PLACE = "\x00"
_ENCODED_PLACE = _encode_json(_PLACE)


class ChunkEncoder:
    """Writes one server-sent event for each token.

    Args:
        head: The fields that all chunks share: id, object, created, model.
        is_chat: Chat chunks hold a delta (the first one with the role), others a text.
        has_usage: Every chunk says `"usage": null`, as OpenAI does where usage is asked for.
    """

    def __init__(self, head: Fields, *, is_chat: bool, has_usage: bool) -> None:
        self._head = head
        self._is_chat = is_chat
        self._tail: Fields = {"usage": None} if has_usage else {}
        self._is_first = True
        # The text is the only thing that differs; the id and the model's name hold no control characters.
        self._before, self._after = event(self._chunk(_PLACE, None, has_role=False)).split(_ENCODED_PLACE)

    def encode(self, chunk: TokenChunk, timings: Fields | None = None) -> bytes:
        """Return the event of one token; `timings` go with the last one."""
        if not self._is_first and chunk.finish_reason is None:
            return self._before + _encode_json(chunk.text) + self._after
        value = self._chunk(chunk.text, chunk.finish_reason, has_role=self._is_first)
        if timings is not None:
            value["exo"] = timings
        self._is_first = False
        return event(value)

    def usage(self, usage: Fields) -> bytes:
        """Return the event that tells the usage, behind the last token's."""
        return event({**self._head, "choices": [], "usage": usage})

    def _chunk(self, text: str, finish_reason: str | None, *, has_role: bool) -> Fields:
        choice: Fields = {"index": 0}
        if not self._is_chat:
            choice["text"] = text
        elif has_role:
            choice["delta"] = {"role": "assistant", "content": text}
        else:
            choice["delta"] = {"content": text}
        choice |= {"logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice], **self._tail}


def event(value: object, name: str | None = None) -> bytes:
    """Return a value as one server-sent event."""
    start = b"" if name is None else b"event: " + name.encode() + b"\n"
    return start + b"data: " + _encode_json(value) + b"\n\n"
