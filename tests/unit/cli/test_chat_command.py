"""`exo chat`: answers on stdout, numbers on stderr, Ctrl-C, and talks."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from exo.cli.chat import printable
from exo.dataplane.errors import GenerationFailedError, GenerationRejected
from exo.shared.types.generation import ChatMessage, Sampling
from support.cli_run import Run, RunningWorld


class Terminal(io.StringIO):
    """Standard input of somebody who types."""

    def isatty(self) -> bool:
        return True


def test_an_answer_streams_to_stdout_and_its_numbers_to_stderr(ready: RunningWorld, run: Run) -> None:
    outcome = run(
        "chat",
        "toy",
        "Hi",
        "--max-tokens",
        "9",
        "--temperature",
        "0.5",
        "--seed",
        "3",
        "--system",
        "Be brief.",
    )
    assert (outcome.code, outcome.out) == (0, "Hello, world\n")
    assert re.fullmatch(r"\[4 tokens, [\d.]+ tokens/s, first token after [\d.]+ s\]\n", outcome.err)
    ((_, request),) = ready.world.client.requests
    assert request.messages == (
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content="Hi"),
    )
    assert (request.max_tokens, request.sampling) == (9, Sampling(temperature=0.5, seed=3))


def test_without_a_prompt_a_pipe_is_read(
    ready: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\nthere\n"))
    assert run("chat", "toy").out == "Hello, world\n"
    assert ready.world.client.requests[0][1].messages == (ChatMessage(role="user", content="Hi\nthere\n"),)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    outcome = run("chat", "toy")
    assert outcome.code == 2
    assert "nothing to ask" in outcome.err


def test_what_the_node_refuses_is_one_sentence(ready: RunningWorld, run: Run) -> None:
    outcome = run("chat", "toi", "Hi")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("exo: there is no model 'toi'; did you mean toy?")
    assert outcome.err.count("\n") == 1 and "`exo doctor`" in outcome.err
    ready.world.client.refusal = GenerationRejected(400, "context_length_exceeded", "the prompt is too long")
    assert run("chat", "toy", "Hi") == (1, "", "exo: the prompt is too long\n")


def test_an_answer_that_breaks_off_keeps_what_came(ready: RunningWorld, run: Run) -> None:
    ready.world.client.acts = ("Hel", GenerationFailedError("stage_lost", "the last stage was lost"))
    assert run("chat", "toy", "Hi") == (
        1,
        "Hel\n",
        "exo: the last stage was lost; ask again in a few seconds\n",
    )


def talk(monkeypatch: pytest.MonkeyPatch, *turns: str | type[BaseException]) -> None:
    """Type these lines, or do these things instead; then the input ends."""
    script: Iterator[str | type[BaseException]] = iter(turns)

    def typed(_: str) -> str:
        turn = next(script, EOFError)
        if isinstance(turn, str):
            return turn
        raise turn

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)


def test_a_talk_remembers_its_turns(ready: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    talk(monkeypatch, "Hi", "", "And?")
    outcome = run("chat", "toy", "--system", "Be brief.")
    assert (outcome.code, outcome.out) == (0, "Hello, world\n" * 2)
    assert [message.content for message in ready.world.client.requests[1][1].messages or ()] == [
        "Be brief.",
        "Hi",
        "Hello, world",
        "And?",
    ]


def test_a_talk_survives_an_error_and_forgets_the_turn(
    ready: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = ready.world.client

    def refuse_once() -> None:
        client.refusal = (
            GenerationRejected(429, "queue_full", "the queue is full") if not client.streams else None
        )
        if len(client.requests) > 1:
            client.refusal = None

    client.on_start = refuse_once
    talk(monkeypatch, "Hi", "Again")
    outcome = run("chat", "toy")
    assert (outcome.code, outcome.out) == (0, "Hello, world\n")
    assert "exo: the queue is full" in outcome.err
    assert client.requests[1][1].messages == (ChatMessage(role="user", content="Again"),)


def test_ctrl_c_at_the_prompt_leaves_a_talk(
    ready: RunningWorld, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk(monkeypatch, "Hi", KeyboardInterrupt, "never")
    assert run("chat", "toy").code == 0
    assert len(ready.world.client.requests) == 1


def test_ctrl_c_ends_the_answer_and_its_generation(ready: RunningWorld) -> None:
    ready.world.client.acts = ("Hel", "lo", None)
    command = [sys.executable, "-m", "exo", "chat", "toy", "Hi", "--url", ready.url]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = b""
        while seen != b"Hello":
            seen += os.read(process.stdout.fileno(), 5 - len(seen))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == b"\n"
    assert b"interrupted" in err
    assert b"Traceback" not in err
    (stream,) = ready.world.client.streams
    ready.portal.call(stream.cancelled.wait)


def test_a_model_cannot_take_hold_of_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\r\nc\td\u200d\U0001f600ä") == "a[2Jb\nc\td\u200d\U0001f600ä"
