"""How the command line speaks: answers on stdout, everything about them on stderr, sizes for people."""

import sys
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPED_WIDTH = 200
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def answers() -> "Console":
    """Return the console of stdout. In a pipe lines are long, so that nothing is cut."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def remarks() -> "Console":
    """Return the console of stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPED_WIDTH)


def table(*columns: str, right: tuple[str, ...] = ()) -> "Table":
    """Return an empty table without lines; columns named in `right` are for numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return made


def plain(text: object) -> str:
    """Return a text from outside so that it is printed as it is, and never read as markup."""
    from rich.markup import escape

    return escape("".join(character if character.isprintable() else " " for character in str(text)))


def size(size_bytes: int | None) -> str:
    """Return bytes for people: `3.2 GiB`; a dash where it is not known."""
    if size_bytes is None:
        return "-"
    value, unit = float(size_bytes), 0
    while abs(value) >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def layer_range(stage: Mapping[str, Any]) -> str:
    """Return a stage's layers, counted from 0: `0-15`, or `5` where it is one alone."""
    first, last = stage["start_layer"], stage["end_layer"] - 1
    return str(first) if first == last else f"{first}-{last}"


def layers(stage: Mapping[str, Any]) -> str:
    """Return the same in words: `layers 0-15`, `layer 5`."""
    told = layer_range(stage)
    return f"layers {told}" if "-" in told else f"layer {told}"


def print_json(value: object) -> None:
    """Print a value as JSON for programs."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def report_error(error: Exception, *, is_traceback_wanted: bool) -> int:
    """Say on stderr what went wrong, and return the exit code."""
    from exo.shared.errors import ExoError

    if is_traceback_wanted:
        traceback.print_exception(error)
    if isinstance(error, ExoError):
        print(f"exo: {error.message}", file=sys.stderr)
        return error.exit_code
    kind = type(error).__name__
    hint = "" if is_traceback_wanted else "; run it again with -vv to see where"
    print(f"exo: something went wrong inside exo ({kind}: {error}){hint}", file=sys.stderr)
    return 1
