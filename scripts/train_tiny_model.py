"""Trains the small model that ships with exo, from nothing, on text that it generates itself.

    python scripts/train_tiny_model.py --output DIR

Needs mlx, mlx-lm, tokenizers and transformers, no network and no GPU. The same seed on the same versions
and the same machine type gives the same weights. With the CPU build of mlx, preloading OpenBLAS
(`LD_PRELOAD=libopenblas.so.0 OPENBLAS_NUM_THREADS=2`) makes it several times faster.
"""

import argparse
import json
import math
import random
import time
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import qwen3
from mlx_lm.utils import save_config, save_model
from tokenizers import Tokenizer

from tiny_model.conversations import Conversation, draw_conversation, draw_document
from tiny_model.tokenizer import END_OF_TEXT, TURN_END, TURN_START, save_tokenizer, train_tokenizer

SHIPPED_DIRECTORY = Path(__file__).parent.parent / "src/exo/worker/models/bundled/exo-tiny"
CONTEXT_TOKENS = 1024
# Most rows are short, as most tests are; the long ones teach that only the last question counts.
ROW_TOKENS_WEIGHTS = {64: 0.35, 128: 0.35, 256: 0.2, 512: 0.07, CONTEXT_TOKENS: 0.03}
TOKENS_PER_TURN_MIN = 12
DOCUMENT_SHARE = 0.04
# An answer is right or wrong at its end, where the digits of a result are, and at its commas, where counting
# could have stopped. What lies between is repeated from the question or follows from the number before.
DECISIVE_TOKENS = 5
DECISIVE_WEIGHT = 5.0


def model_config(tokenizer: Tokenizer) -> dict[str, object]:
    """The `config.json` of the model: a qwen3 of six layers with tied embeddings."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": CONTEXT_TOKENS,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": tokenizer.get_vocab_size(),
    }


class RowWriter:
    """Lays conversations out as rows of token ids, with the weight of every token in the loss."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._start, self._end = vocabulary[TURN_START], vocabulary[TURN_END]
        self._padding = vocabulary[END_OF_TEXT]
        self._comma = vocabulary[","]
        self._newline = self._encode("\n")

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def _head(self, role: str) -> list[int]:
        return [self._start, *self._encode(role + "\n")]

    def _message(self, role: str, content: str) -> list[int]:
        return [*self._head(role), *self._encode(content), self._end, *self._newline]

    def conversation_row(self, conversation: Conversation, row_tokens: int) -> tuple[list[int], list[float]]:
        """Token ids and loss weights, both of `row_tokens + 1`; turns that do not fit are left out."""
        limit = row_tokens + 1
        ids: list[int] = []
        weights: list[float] = []
        if conversation.system_prompt:
            system = self._message("system", conversation.system_prompt)
            if len(system) < limit // 2:
                ids += system
                weights += [0.0] * len(system)
        for turn in conversation.turns:
            question = [*self._message("user", turn.question), *self._head("assistant")]
            answer = [*self._encode(turn.answer), self._end]
            if len(ids) + len(question) + len(answer) + len(self._newline) > limit:
                continue
            ids += [*question, *answer, *self._newline]
            weights += [0.0] * len(question)
            for place, token in enumerate(answer, start=1):
                decisive = token == self._comma or place > len(answer) - DECISIVE_TOKENS
                weights.append(DECISIVE_WEIGHT if decisive else 1.0)
            weights += [0.0] * len(self._newline)
        return self._padded(ids, weights, limit)

    def document_row(
        self, beginning: str, continuation: str, row_tokens: int
    ) -> tuple[list[int], list[float]]:
        """The same for a plain text, which ends with the end-of-text token or is cut off at the row's end."""
        prompt = self._encode(beginning)
        ids = [*prompt, *self._encode(continuation), self._padding]
        weights = [0.0] * len(prompt) + [1.0] * (len(ids) - len(prompt))
        return self._padded(ids, weights, row_tokens + 1)

    def _padded(self, ids: list[int], weights: list[float], limit: int) -> tuple[list[int], list[float]]:
        missing = max(0, limit - len(ids))
        return (ids + [self._padding] * missing)[:limit], (weights + [0.0] * missing)[:limit]

    def batch(self, rng: random.Random, step_tokens: int) -> tuple[mx.array, mx.array]:
        """Ids and loss weights of one step: rows of one length, `step_tokens` together."""
        [row_tokens] = rng.choices(list(ROW_TOKENS_WEIGHTS), list(ROW_TOKENS_WEIGHTS.values()))
        turns_max = row_tokens // TOKENS_PER_TURN_MIN
        rows = [
            self.document_row(*draw_document(rng), row_tokens)
            if rng.random() < DOCUMENT_SHARE
            else self.conversation_row(draw_conversation(rng, turns_max), row_tokens)
            for _ in range(step_tokens // row_tokens)
        ]
        ids, weights = zip(*rows, strict=True)
        return mx.array(np.array(ids, np.int32)), mx.array(np.array(weights, np.float32))


def answer_loss(model: nn.Module, ids: mx.array, weights: mx.array) -> mx.array:
    """Weighted mean of the cross-entropy of the answers' tokens; `ids` and `weights` are (rows, tokens)."""
    logits = model(ids[:, :-1])
    losses = nn.losses.cross_entropy(logits, ids[:, 1:])
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then half a cosine down to a hundredth of the peak."""
    warm_up = min(1.0, (step + 1) / 100)
    return peak * warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train(model: nn.Module, writer: RowWriter, seed: int, steps: int, step_tokens: int, peak: float) -> None:
    """Trains `model` in place with AdamW, in f32."""
    rng = random.Random(seed)
    optimizer = optim.AdamW(learning_rate=peak, betas=[0.9, 0.98], weight_decay=0.05)
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step_once(ids: mx.array, weights: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(model, answer_loss)(model, ids, weights)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        return loss

    started = time.monotonic()
    recent: list[float] = []
    for step in range(steps):
        optimizer.learning_rate = mx.array(learning_rate(step, steps, peak))
        loss = step_once(*writer.batch(rng, step_tokens))
        mx.eval(state, loss)
        recent.append(float(loss))
        if (step + 1) % 50 == 0:
            print(
                f"step {step + 1:5d}  loss {np.mean(recent):.5f}  {time.monotonic() - started:6.0f} s",
                flush=True,
            )
            recent.clear()


def save(model: nn.Module, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes everything a loader wants, the weights rounded to bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    config = model_config(tokenizer)
    model.update(tree_map(lambda weight: weight.astype(mx.bfloat16), model.parameters()))
    save_model(directory, model)
    save_config(dict(config), directory / "config.json")
    save_tokenizer(tokenizer, directory, CONTEXT_TOKENS)
    generation = {
        "do_sample": False,
        "eos_token_id": [tokenizer.token_to_id(TURN_END), tokenizer.token_to_id(END_OF_TEXT)],
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
    }
    (directory / "generation_config.json").write_text(
        json.dumps(generation, indent=2) + "\n", encoding="utf-8"
    )


def main() -> None:
    """Reads the command line, trains and saves."""
    parser = argparse.ArgumentParser(description="Train the small model that ships with exo.")
    parser.add_argument("--output", type=Path, default=SHIPPED_DIRECTORY)
    parser.add_argument("--resume", type=Path, help="a model of this script to train further")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--step-tokens", type=int, default=1024)
    parser.add_argument("--peak-learning-rate", type=float, default=2e-3)
    arguments = parser.parse_args()
    mx.random.seed(arguments.seed)
    resumed: Path | None = arguments.resume
    tokenizer = (
        Tokenizer.from_file(str(resumed / "tokenizer.json")) if resumed else train_tokenizer(arguments.seed)
    )
    model = qwen3.Model(qwen3.ModelArgs.from_dict(model_config(tokenizer)))
    if resumed:
        model.load_weights(str(resumed / "model.safetensors"))
        model.update(tree_map(lambda weight: weight.astype(mx.float32), model.parameters()))
    parameters = sum(
        weight.size for _, weight in tree_flatten(model.parameters()) if isinstance(weight, mx.array)
    )
    print(f"{parameters:,} parameters")
    train(
        model,
        RowWriter(tokenizer),
        seed=arguments.seed,
        steps=arguments.steps,
        step_tokens=arguments.step_tokens,
        peak=arguments.peak_learning_rate,
    )
    save(model, tokenizer, arguments.output)


if __name__ == "__main__":
    main()
