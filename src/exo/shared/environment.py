"""Reads numbers that a user sets by the environment, and says what is wrong with one."""

from collections.abc import Mapping
from math import isfinite

from exo.shared.errors import ConfigurationError


def number_from(
    environment: Mapping[str, str], name: str, usual: float, *, least: float, most: float
) -> float:
    """Return a number of the environment; the usual one where it is not set.

    Args:
        environment: Usually `os.environ`.
        name: Of the variable.
        usual: What holds where it is not set, or empty.
        least: The smallest number that makes sense.
        most: The largest.

    Raises:
        ConfigurationError: It is no number, or none that makes sense; the message names it.
    """
    text = environment.get(name, "")
    if not text:
        return usual
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (isfinite(value) and least <= value <= most):
        raise ConfigurationError(
            f"{name} is {text!r}; set it to a number from {least:g} to {most:g}, or unset it for {usual:g}"
        )
    return value


def is_off(environment: Mapping[str, str], name: str) -> bool:
    """Say whether a variable turns something off: `0`, `false`, `no`, `off`."""
    return environment.get(name, "").strip().lower() in {"0", "false", "no", "off"}
