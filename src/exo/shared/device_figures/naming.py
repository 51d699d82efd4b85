"""Which known devices a driver's name may mean. The longest pattern wins; a word too many is another device. Pure."""

import re
from functools import cache, lru_cache

import msgspec

from exo.shared.device_figures.catalogue import Kind, KnownDevice, catalogue

_NAME_LENGTH_MAX = 200
_ALTERNATIVES_MAX = 8
_SLOWER_WORDS = frozenset(("laptop", "mobile", "max"))
_NVIDIA_WORDS = frozenset(("ti", "super", "d", "dd", "nvl", "sff", "server", "ada", "blackwell", "mig"))
_AMD_WORDS = frozenset(("xt", "xtx", "xl", "gre", "m", "pro", "plus"))
_APPLE_WORDS = frozenset(("pro", "max", "ultra"))
_VARIANT_WORDS = _SLOWER_WORDS | _NVIDIA_WORDS | _AMD_WORDS | _APPLE_WORDS
"""A device whose name has one of these more than a known one is another device, and mostly a slower one."""
_MARKS = re.compile(r"\((?:r|tm|c)\)|[®™]", re.IGNORECASE)
_NO_WORD = re.compile(r"[^a-z0-9]+")


class Match(msgspec.Struct, frozen=True):
    """A known device that a name may mean.

    Attributes:
        device: The known one.
        extra_words: What the name says beyond it: this is a relative, not the device itself.
    """

    device: KnownDevice
    extra_words: frozenset[str] = frozenset()

    @property
    def is_mobile(self) -> bool:
        """Whether the name says that it is built into a laptop, or held back for one."""
        return bool(self.extra_words & _SLOWER_WORDS)


def words(name: str) -> tuple[str, ...]:
    """Return a name's words in small letters, without trademarks and punctuation."""
    return tuple(_NO_WORD.sub(" ", _MARKS.sub(" ", name[:_NAME_LENGTH_MAX]).lower()).split())


def alternatives(name: str) -> tuple[str, ...]:
    """Return the names that a list of PCI devices puts into one.

    `Radeon RX 7900 XT/7900 XTX` stands for `Radeon RX 7900 XT` and `Radeon RX 7900 XTX`.
    """
    first, *rest = [part.strip() for part in name[:_NAME_LENGTH_MAX].split("/") if part.strip()] or [""]
    found = [first]
    before = first.split()
    for part in rest[: _ALTERNATIVES_MAX - 1]:
        own = part.split()
        lowered = [word.lower() for word in before]
        if own[0].lower() in lowered:
            cut = lowered.index(own[0].lower())
        else:
            cut = next((at for at, word in enumerate(before) if any(map(str.isdigit, word))), len(before))
        found.append(" ".join([*before[:cut], *own]))
    return tuple(found)


@lru_cache(maxsize=2048)
def matches(name: str, kind: Kind) -> tuple[Match, ...]:
    """Return what a name may mean, of all its alternatives; more than one where known devices share a name."""
    found: dict[str, Match] = {}
    for one in alternatives(name):
        found |= {match.device.name: match for match in _longest(" ".join(words(one)), kind)}
    is_any_exact = any(not match.extra_words for match in found.values())
    return tuple(match for match in found.values() if not (is_any_exact and match.extra_words))


def _longest(text: str, kind: Kind) -> list[Match]:
    best: tuple[int, int] = (0, 0)
    found: list[Match] = []
    for device, pattern, length in _patterns(kind):
        if length < best:
            continue
        hit = pattern.search(text)
        if hit is None:
            continue
        if length > best:
            best, found = length, []
        extra = frozenset(f"{text[: hit.start()]} {text[hit.end() :]}".split()) & _VARIANT_WORDS
        found.append(Match(device, extra))
    return found


@cache
def _patterns(kind: Kind) -> tuple[tuple[KnownDevice, re.Pattern[str], tuple[int, int]], ...]:
    return tuple(
        (device, _compiled(pattern), weight(pattern))
        for device in catalogue()
        if device.kind == kind
        for pattern in device.patterns
    )


def weight(pattern: str) -> tuple[int, int]:
    """Return how much of a name a pattern tells: its words, and the letters that it fixes."""
    return len(pattern.split()), sum(letter not in "?* " for letter in pattern)


def _compiled(pattern: str) -> re.Pattern[str]:
    body = re.escape(pattern).replace(r"\ ", " ").replace(r"\*", r"\S+").replace(r"\?", r"\S")
    return re.compile(rf"(?<!\S){body}(?!\S)")
