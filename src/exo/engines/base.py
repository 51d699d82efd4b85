"""The seam every engine fits: a stage runs a range of a model's layers for several sequences at once.

A stage lives in a process and a thread of its own; nothing here is safe to call from two threads.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from exo.engines.calibration import PREFILL_TOKENS_MAX
from exo.shared.types.generation import ChatMessage, Sampling

ProgressCallback = Callable[[int, int, str], None]
"""Called while loading with the layers loaded, the layers in all, and a word on what is being loaded."""


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """What a stage is to load: layers `start_layer` to `end_layer` (exclusive)."""

    model_dir: Path
    start_layer: int
    end_layer: int
    device: str
    """Local alias, such as `cpu:0`."""
    context_length: int
    """Tokens per sequence, prompt and answer together."""


@dataclass(frozen=True)
class Hidden:
    """Hidden values of consecutive positions of one sequence, on their way between two stages.

    Attributes:
        values: Shape (1, positions, hidden size). NumPy has no bfloat16: its 16 bits travel as uint16.
        dtype: The real type, such as `bfloat16` or `float32`.
    """

    values: npt.NDArray[np.generic]
    dtype: str

    @staticmethod
    def carrier(dtype: str) -> np.dtype[np.generic]:
        """Return the NumPy type that carries values of `dtype`.

        Raises:
            ValueError: No engine sends such values.
        """
        if dtype == "bfloat16":
            return np.dtype(np.uint16)
        if dtype in ("float16", "float32"):
            return np.dtype(dtype)
        raise ValueError(f"hidden values cannot be of type {dtype!r}")

    @staticmethod
    def from_bytes(data: bytes | bytearray, shape: Sequence[int], dtype: str) -> "Hidden":
        """Read what `to_bytes` gave.

        Raises:
            ValueError: The bytes do not fit the shape and type.
        """
        return Hidden(np.frombuffer(data, Hidden.carrier(dtype)).reshape(tuple(shape)), dtype)

    def to_bytes(self) -> memoryview:
        """Return the values in row-major order, without a copy where they lie so already."""
        return np.ascontiguousarray(self.values).view(np.uint8).data.cast("B")


class Detokenizer(ABC):
    """Turns one sequence's tokens into text, piece by piece, never cutting a character in two."""

    @abstractmethod
    def add(self, token_id: int) -> str:
        """Return the text that this token completes; empty for a part of a character or a special token."""

    @abstractmethod
    def finish(self) -> str:
        """Return what is left: the replacement character for half a character, usually nothing."""


class Tokenizer(ABC):
    """A model's own tokenizer and chat template."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Ids run from 0 to this, exclusive."""

    @property
    @abstractmethod
    def end_token_ids(self) -> frozenset[int]:
        """The ids with which the model ends its answer."""

    @abstractmethod
    def encode_chat(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the prompt that asks for the next answer in a conversation.

        Raises:
            PromptError: The model has no chat template, or the template refuses these messages.
        """

    @abstractmethod
    def encode_prompt(self, text: str) -> list[int]:
        """Return the tokens of a text that is to be continued."""

    @abstractmethod
    def detokenizer(self) -> Detokenizer:
        """Return a fresh detokenizer for one sequence."""


@dataclass(frozen=True, kw_only=True)
class StageStats:
    """What a stage has done and holds."""

    sequences: int
    device_description: str


class Stage(ABC):
    """Some or all layers of a model. The first stage takes tokens, the last one gives tokens.

    Args:
        spec: What to load.
    """

    def __init__(self, spec: StageSpec) -> None:
        self.spec = spec

    @property
    @abstractmethod
    def layer_count(self) -> int:
        """Layers of the whole model; known once loaded."""

    @property
    def is_first(self) -> bool:
        """Whether it takes tokens rather than hidden values."""
        return self.spec.start_layer == 0

    @property
    def is_last(self) -> bool:
        """Whether it gives tokens rather than hidden values; known once loaded."""
        return self.spec.end_layer == self.layer_count

    @property
    def prefill_tokens_max(self) -> int:
        """How many positions it runs in about a second; known once loaded."""
        return PREFILL_TOKENS_MAX

    @property
    def can_shorten_prefill(self) -> bool:
        """Whether a step of a prompt may have fewer positions than that whenever this is wanted."""
        return True

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, on the first and the last stage."""

    @abstractmethod
    def load(self, on_progress: ProgressCallback) -> None:
        """Bring the layers into memory and run them once.

        Raises:
            ModelFilesError: A file or tensor is missing, truncated or of the wrong shape; the message names it.
            UnsupportedModelError: The engine cannot run, or cannot split, this family of models.
            EngineUnavailableError: The device is not one the installed engine can use.
        """

    @abstractmethod
    def open(self, sequence_id: str, sampling: Sampling) -> None:
        """Make room for a sequence: a KV cache for this stage's layers, and on the last stage its randomness."""

    @abstractmethod
    def forward(
        self, sequence_id: str, inputs: Sequence[int] | Hidden, *, wants_token: bool
    ) -> Hidden | int | None:
        """Run the next positions of a sequence through the layers.

        Args:
            sequence_id: An open one.
            inputs: Token ids on the first stage, elsewhere what the stage before returned.
            wants_token: On the last stage: choose the token that follows. Otherwise only the cache is filled.

        Returns:
            The last stage: a token id, or None when none is wanted. Any other stage: hidden values.
        """

    def generate(self, sequence_id: str, token_ids: Sequence[int], *, has_more: bool) -> int:
        """A stage that is the whole model: run positions and return the token that follows them.

        Args:
            sequence_id: An open one.
            token_ids: The end of the prompt; after that, always the one token returned last.
            has_more: The token after the returned one will be asked for at once, so the engine may begin with it
                before it returns this one.
        """
        token_id = self.forward(sequence_id, token_ids, wants_token=True)
        assert isinstance(token_id, int)
        return token_id

    @abstractmethod
    def close(self, sequence_id: str) -> None:
        """Forget a sequence and free its cache; without effect when it is not open."""

    @abstractmethod
    def stats(self) -> StageStats:
        """Say what it holds at the moment."""
