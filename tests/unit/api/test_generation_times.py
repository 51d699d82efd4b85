"""How fast an answer came, where several of its tokens arrive at once."""

import pytest

from exo.api import generation
from exo.api.access_meter import Spending
from exo.api.generation import RunningGeneration
from exo.dataplane.frames import TokenChunk
from exo.shared.types.ids import InstanceId, RequestId


class Stream:
    """Gives its batches one after the other."""

    prompt_tokens = 1

    def __init__(self, *counts: int) -> None:
        self._counts = list(counts)

    async def next_batch(self) -> list[TokenChunk]:
        if not self._counts:
            return []
        count = self._counts.pop(0)
        end = None if self._counts else "stop"
        return [
            TokenChunk(
                request_id=RequestId("r"),
                index=number,
                token_id=7,
                text="a",
                finish_reason=end if number == count - 1 else None,
            )
            for number in range(count)
        ]

    async def cancel(self) -> None:
        return None


@pytest.mark.parametrize(
    ("counts", "per_token_s"),
    [((1, 1, 1), 0.5), ((7, 2), 0.25), ((7, 1, 1), 0.5), ((9,), None), ((1,), None)],
)
async def test_tokens_that_come_at_once_with_the_first_tell_no_speed(
    monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], per_token_s: float | None
) -> None:
    now_s = iter(range(100))
    monkeypatch.setattr(generation.time, "perf_counter", lambda: 10 + next(now_s) / 2)
    running = RunningGeneration(Stream(*counts), InstanceId("i"), 9.0, Spending())
    while await running.next_batch():
        pass
    assert running.completion_tokens == sum(counts)
    assert running.time_to_first_token_s == 1.0
    assert running.time_per_output_token_s == per_token_s
    assert running.timings()["tokens_per_s"] == (None if per_token_s is None else 1 / per_token_s)
