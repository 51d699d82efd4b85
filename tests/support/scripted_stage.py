"""A stage whose layers are simple sums, so that a test knows every token beforehand: for roles without an engine."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from exo.engines.base import Detokenizer, Hidden, ProgressCallback, Stage, StageSpec, StageStats, Tokenizer
from exo.engines.calibration import PREFILL_TOKENS_MAX
from exo.engines.errors import PromptError
from exo.shared.types.generation import ChatMessage, Sampling

END = 0
LAYERS = 4
VOCABULARY = 1000


class LetterTokenizer(Tokenizer):
    """Token ids are code points; 0 ends an answer."""

    @property
    def vocabulary_size(self) -> int:
        return VOCABULARY

    @property
    def end_token_ids(self) -> frozenset[int]:
        return frozenset({END})

    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        if any(message.role == "bad" for message in messages):
            raise PromptError("the template refuses the role bad")
        return [ord(letter) for message in messages for letter in message.content]

    def encode_prompt(self, text: str) -> list[int]:
        if text == "break":
            raise RuntimeError("no such letter")
        return [ord(letter) for letter in text]

    def detokenizer(self) -> Detokenizer:
        return _Letters()


class _Letters(Detokenizer):
    def add(self, token_id: int) -> str:
        return chr(token_id)

    def finish(self) -> str:
        return ""


class ScriptedStage(Stage):
    """Adds each position's tokens up; the token that follows is `answer(sum of all positions so far, count)`.

    Every layer adds nothing: hidden values are the tokens themselves, so any split gives the same answer.
    """

    def __init__(self, spec: StageSpec, answer: Callable[[int, int], int]) -> None:
        super().__init__(spec)
        self._answer = answer
        self.sums: dict[str, tuple[int, int]] = {}
        self.steps: list[tuple[str, int]] = []
        """Sequence and number of positions of every step, in order."""
        self.ran_ahead: list[bool] = []
        """For every step of the whole model: whether it might begin with the next one."""
        self.prefill_tokens = PREFILL_TOKENS_MAX
        self.on_step: Callable[[int], None] = lambda _: None
        """Called with the number of positions of every step."""
        self.fail_with: Exception | None = None
        self.fail_to_open_with: Exception | None = None

    @property
    def layer_count(self) -> int:
        return LAYERS

    @property
    def prefill_tokens_max(self) -> int:
        return self.prefill_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        return LetterTokenizer()

    def load(self, on_progress: ProgressCallback) -> None:
        on_progress(LAYERS, LAYERS, "")

    def open(self, sequence_id: str, sampling: Sampling) -> None:
        if self.fail_to_open_with is not None:
            raise self.fail_to_open_with
        assert sequence_id not in self.sums
        self.sums[sequence_id] = (0, 0)

    def forward(
        self, sequence_id: str, inputs: Sequence[int] | Hidden, *, wants_token: bool
    ) -> Hidden | int | None:
        values = [int(value) for value in (inputs.values[0, :, 0] if isinstance(inputs, Hidden) else inputs)]
        self.steps.append((sequence_id, len(values)))
        self.on_step(len(values))
        if self.fail_with is not None:
            raise self.fail_with
        total, count = self.sums[sequence_id]
        self.sums[sequence_id] = total + sum(values), count + len(values)
        if not self.is_last:
            return Hidden(np.array(values, np.float32).reshape(1, -1, 1), "float32")
        return self._answer(*self.sums[sequence_id]) if wants_token else None

    def generate(self, sequence_id: str, token_ids: Sequence[int], *, has_more: bool) -> int:
        self.ran_ahead.append(has_more)
        return super().generate(sequence_id, token_ids, has_more=has_more)

    def close(self, sequence_id: str) -> None:
        self.sums.pop(sequence_id, None)

    def stats(self) -> StageStats:
        return StageStats(sequences=len(self.sums), device_description="scripted")


def scripted_stage(start_layer: int, end_layer: int, answer: Callable[[int, int], int]) -> ScriptedStage:
    """Return a loaded stage."""
    spec = StageSpec(
        model_dir=Path("/none"),
        start_layer=start_layer,
        end_layer=end_layer,
        device="cpu:0",
        context_length=100,
    )
    return ScriptedStage(spec, answer)
