"""Prometheus's text format, written in one go: a thousand hosts' devices in a tenth of a second.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (version 0.0.4).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Value = float | int | bool | None
Row = tuple[str, Value]
"""Labels as `labels` writes them, and the value; None: it is not known, and left out."""

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


class Family(NamedTuple):
    """One metric with all its samples."""

    name: str
    """As it is written: a counter's ends in `_total`."""
    kind: Literal["gauge", "counter"]
    help: str
    rows: Sequence[Row]


def labels(values: Mapping[str, str]) -> str:
    """Return labels as they stand behind a metric's name; nothing where there are none."""
    if not values:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in values.items()) + "}"


def write(families: Iterable[Family]) -> bytes:
    """Return the families as text. One of which nothing is known is left out altogether."""
    lines: list[str] = []
    for family in families:
        known = [(where, _number(value)) for where, value in family.rows if _is_known(value)]
        if not known:
            continue
        name = family.name
        lines.append(f"# HELP {name} {family.help.translate(_HELP_ESCAPES)}\n# TYPE {name} {family.kind}\n")
        lines += [f"{name}{where} {number}\n" for where, number in known]
    return "".join(lines).encode("utf-8", "replace")


def _is_known(value: Value) -> bool:
    return value is not None and math.isfinite(value)


def _number(value: Value) -> str:
    return repr(value) if type(value) is float else str(int(value or 0))
