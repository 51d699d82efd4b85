"""Measures the small model that ships with exo: sums, counting, small talk and long conversations.

    python scripts/evaluate_tiny_model.py [DIR] [--type float32] [--sums all]

Decoding is greedy, through the model's own chat template. Exits with 1 where a figure falls below what
the model card promises.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from tiny_model import phrases
from tiny_model.conversations import (
    ADDEND_MAX,
    COUNT_MAX,
    Conversation,
    Turn,
    count_answer,
    draw_system_prompt,
    draw_turn,
    sum_answer,
)
from train_tiny_model import SHIPPED_DIRECTORY

PROMPT_TOKENS_PER_BATCH = 16_384
ANSWER_TOKENS_MAX = 450
CHARACTERS_MAX = 850


def complete(
    model: nn.Module, tokenizer: TokenizerWrapper, chats: Sequence[list[dict[str, str]]]
) -> list[str]:
    """Greedy answers to `chats`, decoded together where their prompts are of one length.

    An answer that never stops comes back with a note of it, so that it equals no answer wanted.
    """
    prompts = [list(tokenizer.apply_chat_template(chat, add_generation_prompt=True)) for chat in chats]
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        by_length[len(prompt)].append(index)
    answers = [""] * len(chats)
    for length, indices in by_length.items():
        batch_size = max(1, PROMPT_TOKENS_PER_BATCH // length)
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            tokens = _decode(model, tokenizer, mx.array([prompts[index] for index in batch]))
            for index, answer in zip(batch, tokens, strict=True):
                answers[index] = answer
    return answers


def _decode(model: nn.Module, tokenizer: TokenizerWrapper, prompts: mx.array) -> list[str]:
    cache = make_prompt_cache(model)
    rows: list[list[int]] = [[] for _ in range(prompts.shape[0])]
    open_rows = set(range(len(rows)))
    inputs = prompts
    for _ in range(ANSWER_TOKENS_MAX):
        chosen = mx.argmax(model(inputs, cache=cache)[:, -1], axis=-1)
        inputs = chosen[:, None]
        for row, token in enumerate(np.array(chosen).tolist()):
            if token in tokenizer.eos_token_ids:
                open_rows.discard(row)
            elif row in open_rows:
                rows[row].append(token)
        if not open_rows:
            break
    return [
        tokenizer.decode(tokens) + (" (never stopped)" if row in open_rows else "")
        for row, tokens in enumerate(rows)
    ]


def _questions(turns: Sequence[Turn]) -> list[tuple[Conversation, str]]:
    return [(Conversation("", (Turn(turn.question, ""),)), turn.answer) for turn in turns]


def _phrasings(rng: random.Random) -> Iterator[Turn]:
    for phrasing in phrases.SUM_QUESTIONS:
        for _ in range(100):
            a, b = rng.randint(0, ADDEND_MAX), rng.randint(0, ADDEND_MAX)
            yield Turn(phrasing.format(a=a, b=b), sum_answer(a, b))


def _conversations(rng: random.Random, turns: int, count: int) -> Iterator[tuple[Conversation, str]]:
    while count > 0:
        drawn = tuple(draw_turn(rng) for _ in range(turns))
        conversation = Conversation(draw_system_prompt(rng), drawn)
        characters = sum(len(message["content"]) for message in conversation.messages())
        # Counting costs about a token for each character; beyond its context the model promises nothing.
        if characters <= CHARACTERS_MAX:
            count -= 1
            yield conversation, drawn[-1].answer


def suites(seed: int, sums: str) -> Iterator[tuple[str, float, list[tuple[Conversation, str]]]]:
    """Name, least share of right answers, and questions with the answers wanted, of every measurement."""
    rng = random.Random(seed)
    pairs = [(a, b) for a in range(ADDEND_MAX + 1) for b in range(ADDEND_MAX + 1)]
    chosen = pairs if sums == "all" else [(12, 30), *rng.sample(pairs, int(sums) - 1)]
    asked = [Turn(f"What is {a} + {b}?", sum_answer(a, b)) for a, b in chosen]
    yield "What is A + B?", 0.999, _questions(asked)
    yield "sums in every phrasing", 0.99, _questions(list(_phrasings(rng)))
    to_thirty = [Turn(f"Count to {n}.", count_answer(1, n)) for n in range(1, 31)]
    yield "Count to N, 1 to 30", 1.0, _questions(to_thirty)
    to_hundred = [Turn(f"Count to {n}.", count_answer(1, n)) for n in range(31, COUNT_MAX + 1)]
    yield "Count to N, 31 to 100", 0.5, _questions(to_hundred)
    spans = [(a, rng.randint(a + 1, min(COUNT_MAX, a + 30))) for a in range(COUNT_MAX) for _ in range(3)]
    from_to = [Turn(f"Count from {a} to {b}.", count_answer(a, b)) for a, b in spans]
    yield "Count from A to B", 0.95, _questions(from_to)
    fixed = [Turn(question, answer) for questions, answer in phrases.FIXED_ANSWERS for question in questions]
    yield "greetings and questions about itself", 0.95, _questions(fixed)
    yield "one turn of any kind, system prompts", 0.97, list(_conversations(rng, 1, 400))
    yield "last of 5 turns, system prompts", 0.97, list(_conversations(rng, 5, 200))
    yield "last of 10 turns, system prompts", 0.95, list(_conversations(rng, 10, 100))


def main() -> None:
    """Reads the command line, measures and prints one line for each measurement."""
    parser = argparse.ArgumentParser(description="Measure the small model that ships with exo.")
    parser.add_argument("directory", type=Path, nargs="?", default=SHIPPED_DIRECTORY)
    parser.add_argument("--type", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--sums", default="all", help="how many sums: 'all' 10,000 of them, or a number")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--show-wrong", type=int, default=3, help="how many wrong answers to print for each")
    arguments = parser.parse_args()
    model, tokenizer = mlx_lm.load(str(arguments.directory))[:2]
    number_type = mx.float32 if arguments.type == "float32" else mx.bfloat16
    model.update(tree_map(lambda weight: weight.astype(number_type), model.parameters()))
    failed = False
    for name, least, questions in suites(arguments.seed, arguments.sums):
        started = time.monotonic()
        # The answer to the last turn is what is asked for.
        answers = complete(model, tokenizer, [conversation.messages()[:-1] for conversation, _ in questions])
        wrong = [
            (conversation.turns[-1].question, answer)
            for (conversation, wanted), answer in zip(questions, answers, strict=True)
            if answer != wanted
        ]
        right = len(questions) - len(wrong)
        print(
            f"{name:40s} {right:6d} of {len(questions):6d} right  {time.monotonic() - started:6.1f} s",
            flush=True,
        )
        for question, answer in wrong[: arguments.show_wrong]:
            print(f"    {question!r} -> {answer!r}")
        failed = failed or right < least * len(questions)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
