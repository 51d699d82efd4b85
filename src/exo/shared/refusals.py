"""How refusals are made: the status, a constant for programs, a sentence with the next step. Pure."""

from collections.abc import Iterable, Sequence

from exo.shared.types.commands import Refusal

TEXT_CHARACTERS_MAX = 128
"""Of names and reasons."""


def refusal(status: int, code: str, message: str, *, near_matches: Sequence[str] = ()) -> Refusal:
    """Return a refusal; `message` says the next step."""
    return Refusal(status=status, code=code, message=message, near_matches=tuple(near_matches))


def unknown_node(node_id: str, known: Iterable[str]) -> Refusal:
    """Return the refusal for a node that nobody knows."""
    return unknown("node", node_id, known, "exo node list")


def clean_text(text: str) -> str:
    """Return a text from outside on one line, without what a terminal would act on, and not too long."""
    # Looked at no further than it can be shown: a peer's text may have millions of characters.
    start = text[: 2 * TEXT_CHARACTERS_MAX]
    shown = "".join(character if character.isprintable() else " " for character in start)
    return shown.strip()[:TEXT_CHARACTERS_MAX]


def unknown(what: str, name: str, known: Iterable[str], listing: str) -> Refusal:
    """Return the refusal for a name that nothing has; `listing` is the command that lists them."""
    begin = name[:4]
    return refusal(
        404,
        f"{what}_not_found",
        f"there is no {what} {clean_text(name)!r}; `{listing}` lists those there are",
        near_matches=[one for one in sorted(set(known)) if begin and one.startswith(begin)][:3],
    )
