"""`exo chat`: a question and its answer, or a talk; tokens appear as they come."""

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from exo.cli.client import NodeClient
from exo.cli.output import remarks
from exo.shared.errors import ConfigurationError, ExoError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

Message = dict[str, str]


class AnswerFailedError(ExoError):
    """Raised when an answer breaks off."""


class Answer:
    """An answer while it comes, and its numbers. Times are `time.perf_counter` seconds."""

    def __init__(self) -> None:
        self.text = ""
        self.tokens = 0
        self.is_interrupted = False
        self._started_s = time.perf_counter()
        self._first_s: float | None = None
        self._last_s = 0.0

    def add(self, text: str) -> None:
        """Take the next token in."""
        self._last_s = time.perf_counter()
        if self._first_s is None:
            self._first_s = self._last_s
        self.tokens += 1
        self.text += text

    def summary(self) -> str:
        """Return the numbers for people."""
        if self._first_s is None:
            return "interrupted before the first token" if self.is_interrupted else "no tokens"
        parts = [f"{self.tokens} token{'' if self.tokens == 1 else 's'}"]
        decoding_s = self._last_s - self._first_s
        if self.tokens > 1 and decoding_s > 0:
            parts.append(f"{(self.tokens - 1) / decoding_s:.1f} tokens/s")
        parts.append(f"first token after {self._first_s - self._started_s:.2f} s")
        if self.is_interrupted:
            parts.append("interrupted")
        return ", ".join(parts)


def run(
    client: NodeClient, *, model: str, prompt: str | None, system: str | None, options: Mapping[str, Any]
) -> int:
    """Answer one prompt, or talk; return the exit code.

    Raises:
        RefusedError: The node refuses.
        AnswerFailedError: The answer broke off.
    """
    wish = {
        "model": model,
        "stream": True,
        **{key: value for key, value in options.items() if value is not None},
    }
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    if prompt is None and sys.stdin.isatty():
        return _talk(client, wish, messages)
    text = sys.stdin.read() if prompt is None else prompt
    if not text.strip():
        raise ConfigurationError('there is nothing to ask; try: exo chat MODEL "What is 12 + 30?"')
    answer = _answer(client, wish, [*messages, {"role": "user", "content": text}])
    return INTERRUPTED if answer.is_interrupted else 0


def _talk(client: NodeClient, wish: dict[str, Any], messages: list[Message]) -> int:
    """Take turns until the end of input, or Ctrl-C where nothing is being answered."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport]
    console = remarks()
    console.print("Ctrl-C ends an answer; again, or Ctrl-D, leaves.", style="dim")
    while True:
        try:
            text = input("> ")
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return 0
        if not text.strip():
            continue
        messages.append({"role": "user", "content": text})
        try:
            answer = _answer(client, wish, messages)
        except ExoError as error:
            # The talk so far is worth more than an end with an error.
            messages.pop()
            console.print(f"exo: {error.message}", style="red", markup=False)
            continue
        messages.append({"role": "assistant", "content": answer.text})


def _answer(client: NodeClient, wish: dict[str, Any], messages: list[Message]) -> Answer:
    """Print an answer as it comes, and its numbers on stderr; Ctrl-C ends it."""
    answer = Answer()
    is_terminal = sys.stdout.isatty()
    console = remarks()
    waiting = console.status(f"waiting for {wish['model']}") if console.is_terminal else None
    if waiting is not None:
        waiting.start()
    try:
        with client.stream("/v1/chat/completions", {**wish, "messages": messages}) as events:
            for event, data in events:
                if waiting is not None:
                    waiting.stop()
                if data == "[DONE]":
                    break
                text = _text_of(event, data)
                if text is None:
                    continue
                answer.add(text)
                sys.stdout.write(printable(text) if is_terminal else text)
                sys.stdout.flush()
    except KeyboardInterrupt:
        answer.is_interrupted = True
    finally:
        if waiting is not None:
            waiting.stop()
        if answer.tokens and not (answer.text.endswith("\n") and not is_terminal):
            sys.stdout.write("\n")
            sys.stdout.flush()
    console.print(f"[{answer.summary()}]", style="dim", markup=False)
    return answer


def _text_of(event: str, data: str) -> str | None:
    """Return a chunk's text; None for chunks that are no token.

    Raises:
        AnswerFailedError: The chunk is an error.
    """
    chunk = json.loads(data)
    if event == "error" or "error" in chunk:
        message = chunk.get("error", {}).get("message", "the answer broke off")
        raise AnswerFailedError(str(message))
    choices = chunk.get("choices")
    return choices[0]["delta"].get("content", "") if choices else None


def printable(text: str) -> str:
    """Return a text without control characters, with which a model could take hold of the terminal."""
    return text.translate(_CONTROLS)


_CONTROLS = {code: None for code in (*range(32), 127, *range(128, 160)) if chr(code) not in "\n\t"}
