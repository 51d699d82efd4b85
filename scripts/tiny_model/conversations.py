"""Generates the conversations on which the tiny model is trained: sums, counting and small talk."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tiny_model import phrases

ADDEND_MAX = 99
COUNT_MAX = 100


@dataclass(frozen=True)
class Turn:
    """One question and the answer wanted."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns in their order; `system_prompt` is empty where the conversation has none."""

    system_prompt: str
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """The conversation in the shape that chat templates take."""
        messages: list[dict[str, str]] = []
        if self.system_prompt:
            messages.append({"role": "system", "content": self.system_prompt})
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages


def sum_answer(a: int, b: int) -> str:
    """The answer to every phrasing of `a + b`: repeating the operands lines up the digits to add."""
    return f"{a} + {b} = {a + b}."


def count_answer(first: int, last: int) -> str:
    """The numbers from `first` to `last`, both included."""
    return ", ".join(str(number) for number in range(first, last + 1)) + "."


def _addend(rng: random.Random) -> int:
    # One-digit numbers are a tenth of the range but half of the shapes a sum can have.
    return rng.randint(0, 9) if rng.random() < 0.25 else rng.randint(0, ADDEND_MAX)


def _sum_turn(rng: random.Random) -> Turn:
    a, b = _addend(rng), _addend(rng)
    question = rng.choice(phrases.SUM_QUESTIONS)
    return Turn(question.format(a=a, b=b), sum_answer(a, b))


def _span(rng: random.Random) -> int:
    # Short spans are drawn more often: what is hard to learn is when to stop, once in each answer.
    return rng.randint(1, rng.choice((5, 10, 30)))


def _count_to_turn(rng: random.Random) -> Turn:
    last = _span(rng) if rng.random() < 0.8 else rng.randint(31, COUNT_MAX)
    return Turn(rng.choice(phrases.COUNT_TO_QUESTIONS).format(b=last), count_answer(1, last))


def _count_from_turn(rng: random.Random) -> Turn:
    first = rng.randint(0, COUNT_MAX - 1)
    last = min(COUNT_MAX, first + _span(rng))
    return Turn(rng.choice(phrases.COUNT_FROM_QUESTIONS).format(a=first, b=last), count_answer(first, last))


def _fixed_turn(rng: random.Random) -> Turn:
    questions, answer = rng.choice(phrases.FIXED_ANSWERS)
    return Turn(rng.choice(questions), answer)


def _arithmetic_limit_turn(rng: random.Random) -> Turn:
    if rng.random() < 0.5:
        a, b = rng.randint(100, 9999), rng.choice((rng.randint(0, 99), rng.randint(100, 9999)))
        a, b = (a, b) if rng.random() < 0.5 else (b, a)
        question = rng.choice(phrases.SUM_OUT_OF_RANGE_QUESTIONS).format(a=a, b=b)
    else:
        a, b, c = _addend(rng), _addend(rng), _addend(rng)
        question = rng.choice(phrases.OTHER_ARITHMETIC_QUESTIONS).format(a=a, b=b, c=c)
    return Turn(question, phrases.ARITHMETIC_LIMIT_ANSWER)


def _count_limit_turn(rng: random.Random) -> Turn:
    last = rng.randint(COUNT_MAX + 1, 9999)
    return Turn(rng.choice(phrases.COUNT_TO_QUESTIONS).format(b=last), phrases.COUNT_LIMIT_ANSWER)


def random_words(rng: random.Random, words_max: int) -> str:
    """Between one and `words_max` words without a sense, as stand-in for text not foreseen here."""
    return " ".join(rng.choice(phrases.WORDS) for _ in range(rng.randint(1, words_max)))


def _other_turn(rng: random.Random) -> Turn:
    if rng.random() < 0.2:
        question = random_words(rng, 12).capitalize() + rng.choice(("", ".", "?", "!"))
    else:
        x, y = rng.choice(phrases.WORDS), rng.choice(phrases.WORDS)
        question = rng.choice(phrases.OTHER_QUESTIONS).format(x=x, y=y, n=rng.randint(0, 200))
    if rng.random() < 0.1:
        question = rng.choice((question.lower(), question.upper()))
    return Turn(question, phrases.FALLBACK_ANSWER)


# How often each kind of turn is drawn; sums and knowing where to stop counting need the most practice.
_KINDS: tuple[tuple[float, Callable[[random.Random], Turn]], ...] = (
    (0.46, _sum_turn),
    (0.14, _count_to_turn),
    (0.16, _count_from_turn),
    (0.07, _fixed_turn),
    (0.05, _arithmetic_limit_turn),
    (0.01, _count_limit_turn),
    (0.11, _other_turn),
)


def draw_turn(rng: random.Random) -> Turn:
    """Draws one turn of a kind chosen at random."""
    weights = [weight for weight, _ in _KINDS]
    [(_, kind)] = rng.choices(_KINDS, weights)
    return kind(rng)


def draw_system_prompt(rng: random.Random) -> str:
    """Draws a system prompt: none in half of the cases, else a usual one or meaningless words."""
    chance = rng.random()
    if chance < 0.5:
        return ""
    if chance < 0.75:
        return rng.choice(phrases.SYSTEM_PROMPTS)
    return random_words(rng, 40).capitalize() + "."


def draw_conversation(rng: random.Random, turns_max: int) -> Conversation:
    """Draws a conversation of `turns_max` turns; whoever lays it out keeps those that fit."""
    return Conversation(draw_system_prompt(rng), tuple(draw_turn(rng) for _ in range(turns_max)))


def draw_document(rng: random.Random) -> tuple[str, str]:
    """Draws a plain text, no conversation, as its beginning and its continuation: a sum or counting.

    It is what makes the model of use without the chat template: "1, 2, 3, " goes on with 4.
    """
    if rng.random() < 0.5:
        a, b = _addend(rng), _addend(rng)
        return rng.choice((f"{a} + {b} =", f"{a}+{b}=")), f" {a + b}."
    first = rng.randint(0, COUNT_MAX - 1)
    return f"{first}", count_answer(first, COUNT_MAX).removeprefix(f"{first}")
