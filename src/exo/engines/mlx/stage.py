"""A stage that runs with MLX: some layers of a model, or the whole model with steps that overlap."""

import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import numpy as np

from exo.engines.base import Hidden, ProgressCallback, Stage, StageSpec, StageStats, Tokenizer
from exo.engines.calibration import PREFILL_TOKENS_MAX, measure_prefill_tokens
from exo.engines.errors import EngineError, ModelFilesError, UnsupportedModelError
from exo.engines.mlx.layers import LayerRange
from exo.engines.mlx.library import Module, evaluate, evaluate_soon, make_prompt_cache, new_array, token_of
from exo.engines.mlx.loading import LoadedModel, use_device
from exo.engines.mlx.sampler import Sampler, make_sampler
from exo.engines.mlx.tokenizer import MlxTokenizer
from exo.shared.types.generation import Sampling

CLEAR_CACHE_EVERY_TOKENS = 256
PROGRESS_INTERVAL_S = 0.1


class _Sequence:
    def __init__(self, cache: list[Any], sampler: Sampler) -> None:
        self.cache = cache
        self.sampler = sampler
        self.begun: mx.array | None = None
        """A token whose step was begun before it was asked for."""


class MlxStage(Stage):
    """Runs stock mlx-lm models. See `Stage`."""

    def __init__(self, spec: StageSpec) -> None:
        super().__init__(spec)
        self._layer_count = 0
        self._device_description = ""
        self._tokenizer: MlxTokenizer | None = None
        self._part: LayerRange | None = None
        """None when this stage is the whole model: then the model runs itself, whatever its family."""
        self._model: Any = None
        self._make_cache: Callable[[], list[Any]] = list
        self._sequences: dict[str, _Sequence] = {}
        self._tokens_since_clearing = 0
        self._prefill_tokens_max = PREFILL_TOKENS_MAX

    @property
    def layer_count(self) -> int:
        return self._layer_count

    @property
    def prefill_tokens_max(self) -> int:
        return self._prefill_tokens_max

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise EngineError("this stage has no tokenizer: only the first and the last one have")
        return self._tokenizer

    def load(self, on_progress: ProgressCallback) -> None:
        spec = self.spec
        self._device_description = use_device(spec.device)
        loaded = LoadedModel(spec.model_dir)
        model: Any = loaded.model
        layers: Sequence[Module] = model.layers
        self._layer_count = len(layers)
        if not 0 <= spec.start_layer < spec.end_layer <= self._layer_count:
            raise ModelFilesError(
                f"layers {spec.start_layer} to {spec.end_layer - 1} are wanted of {spec.model_dir}, "
                f"which has {self._layer_count}; place the model again"
            )
        if self.is_first and self.is_last:
            loaded.require(lambda name: True)
            self._make_cache = lambda: make_prompt_cache(model)
            parts: Sequence[Module] = [model]
        else:
            part = self._part = LayerRange(model, spec.start_layer, spec.end_layer)
            loaded.require(part.is_kept)
            self._make_cache = part.make_cache
            layers = part.layers
            parts = part.others
        self._model = model
        self._materialise(loaded, layers, parts, on_progress)
        if self.is_first or self.is_last:
            self._tokenizer = MlxTokenizer(
                spec.model_dir, _end_token_ids(loaded.config), gives_text=self.is_last
            )
        self._run_once()
        on_progress(len(layers), len(layers), "measuring its speed")
        self._prefill_tokens_max = measure_prefill_tokens(
            lambda size: self._run_zeros([size], wants_token=False), time.monotonic
        )

    def _materialise(
        self,
        loaded: LoadedModel,
        layers: Sequence[Module],
        others: Sequence[Module],
        progress: ProgressCallback,
    ) -> None:
        """Read weights layer by layer, so that loading can be watched and no more than one is in flight."""
        progress(0, len(layers), "reading weights")
        said_at = time.monotonic()
        for count, layer in enumerate(layers, start=1):
            loaded.materialise(layer)
            now = time.monotonic()
            if count == len(layers) or now - said_at >= PROGRESS_INTERVAL_S:
                said_at = now
                progress(count, len(layers), f"layer {self.spec.start_layer + count - 1} is in memory")
        for part in others:
            loaded.materialise(part)
        progress(len(layers), len(layers), "running once")

    def _run_once(self) -> None:
        """Run a few positions, so that the first request does not pay for what MLX prepares once."""
        try:
            self._run_zeros((2, 1), wants_token=True)
        except EngineError:
            raise
        except Exception as error:  # A family that does not run here fails in its own way.
            raise UnsupportedModelError(f"{self.spec.model_dir} cannot be run with MLX: {error}") from error

    def _run_zeros(self, sizes: Sequence[int], *, wants_token: bool) -> None:
        """Run a sequence of no meaning, so many positions at a time."""
        self.open("", Sampling())
        try:
            for positions in sizes:
                if self._part is None or self.is_first:
                    self.forward("", [0] * positions, wants_token=wants_token)
                else:
                    shape = (1, positions, self._part.hidden_size)
                    self.forward("", _to_hidden(mx.zeros(shape, self._part.dtype)), wants_token=wants_token)
        finally:
            self.close("")

    def open(self, sequence_id: str, sampling: Sampling) -> None:
        self._sequences[sequence_id] = _Sequence(self._make_cache(), make_sampler(sampling))

    def forward(
        self, sequence_id: str, inputs: Sequence[int] | Hidden, *, wants_token: bool
    ) -> Hidden | int | None:
        sequence = self._sequences[sequence_id]
        values = _to_array(inputs)
        if self._part is None:
            output = self._model(values, cache=sequence.cache)
        else:
            output = self._part.run(values, sequence.cache, wants_logits=wants_token)
        if not self.is_last:
            hidden = _to_hidden(output)
            self._clear_cache_now_and_then(output.shape[1])
            return hidden
        if wants_token:
            token = token_of(sequence.sampler(output[:, -1, :]))
            self._clear_cache_now_and_then(1)
            return token
        # The answer is not needed, only what it leaves in the cache.
        evaluate([cache.state for cache in sequence.cache])
        self._clear_cache_now_and_then(values.shape[1])
        return None

    def generate(self, sequence_id: str, token_ids: Sequence[int], *, has_more: bool) -> int:
        sequence = self._sequences[sequence_id]
        token = sequence.begun
        if token is None:
            token = self._begin(sequence, new_array(token_ids))
        # The next step is handed to MLX before this one's token is read: it computes while the caller sends.
        sequence.begun = self._begin(sequence, token) if has_more else None
        self._clear_cache_now_and_then(1)
        return token_of(token)

    def _begin(self, sequence: _Sequence, token_ids: mx.array) -> mx.array:
        logits = self._model(token_ids[None], cache=sequence.cache)
        token = sequence.sampler(logits[:, -1, :])
        evaluate_soon(token)
        return token

    def _clear_cache_now_and_then(self, tokens: int) -> None:
        """Give memory of old shapes back: a KV cache that grows leaves buffers behind that nothing fits again."""
        self._tokens_since_clearing += tokens
        if self._tokens_since_clearing >= CLEAR_CACHE_EVERY_TOKENS:
            self._tokens_since_clearing = 0
            mx.clear_cache()

    def close(self, sequence_id: str) -> None:
        if self._sequences.pop(sequence_id, None) is not None and not self._sequences:
            mx.clear_cache()

    def stats(self) -> StageStats:
        return StageStats(
            sequences=len(self._sequences),
            device_description=self._device_description,
        )


def _to_array(inputs: Sequence[int] | Hidden) -> mx.array:
    if not isinstance(inputs, Hidden):
        return new_array(inputs)[None]
    array = new_array(inputs.values)
    return array.view(mx.bfloat16) if inputs.dtype == "bfloat16" else array


def _to_hidden(values: mx.array) -> Hidden:
    name = str(values.dtype).rpartition(".")[2]
    carried: Any = values.view(mx.uint16) if name == "bfloat16" else values
    return Hidden(np.array(carried), name)


def _end_token_ids(config: dict[str, Any]) -> list[int]:
    found = config.get("eos_token_id")
    if found is None:
        found = cast(dict[str, Any], config.get("text_config") or {}).get("eos_token_id")
    if isinstance(found, int):
        return [found]
    return [int(token_id) for token_id in cast(list[int], found)] if isinstance(found, list) else []
