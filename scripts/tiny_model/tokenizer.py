"""Trains the tiny model's byte-level BPE tokenizer and writes it as transformers and mlx-lm read it."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from tiny_model import phrases
from tiny_model.conversations import draw_turn

VOCABULARY_SIZE = 512
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CORPUS_TURNS = 20_000

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def _corpus(seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(CORPUS_TURNS):
        turn = draw_turn(rng)
        yield turn.question
        yield turn.answer
        # The role names open every message: each becomes one token.
        yield from ("system", "user", "assistant")
        # Plain words get merges of their own, so that unforeseen text does not cost a token per letter.
        yield " ".join(rng.sample(phrases.WORDS, 3))
        yield rng.choice(phrases.SYSTEM_PROMPTS)


def train_tokenizer(seed: int) -> Tokenizer:
    """Trains a tokenizer of 512 tokens on generated text.

    It splits text exactly as the qwen tokenizers do (every digit alone, which sums depend on): loaders
    that go by the model family put that splitting in place of the one in the file, without a word.
    """
    family = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = family.normalizer
    tokenizer.pre_tokenizer = family.pre_tokenizer
    tokenizer.decoder = family.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, context_tokens: int) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, the chat template included."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": [TURN_START, TURN_END],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "model_max_length": context_tokens,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
