"""Names that look like one that does not exist, so that every refusal suggests the same ones."""

import difflib
from collections.abc import Iterable

_CUTOFF = 0.4
_COUNT_MAX = 3
_IN_DOUBT = " (where its directory is there and cannot be read, `exo doctor` on that node says why)"


def near_matches(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return up to three of the known names that look like this one, the nearest first; case does not count."""
    by_lower: dict[str, list[str]] = {}
    for candidate in sorted(set(known)):
        by_lower.setdefault(candidate.lower(), []).append(candidate)
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=_COUNT_MAX, cutoff=_CUTOFF)
    return tuple(candidate for lower in near for candidate in by_lower[lower])[:_COUNT_MAX]


def unknown_model_sentence(name: str, known: Iterable[str]) -> str:
    """Return what is said of a model that no node has, with the next step in it."""
    names = sorted(set(known))
    near = near_matches(name, names)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif names:
        hint = f"there {'is' if len(names) == 1 else 'are'} {', '.join(names[:10])}" + (
            f" and {len(names) - 10} more (`exo models`)" if len(names) > 10 else ""
        )
    else:
        hint = "no node has any; put a model's directory into the models folder"
    return f"there is no model {name!r}; {hint}{_IN_DOUBT if names else ''}"
