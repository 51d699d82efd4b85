"""Times as people write them: `90s`, `15m`, `1h`, `30d`."""

import re

from exo.shared.errors import ConfigurationError

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SHAPE = re.compile(r"(\d{1,6})\s*([smhdw])")


def parse_duration_s(text: str, flag: str) -> float:
    """Return seconds.

    Raises:
        ConfigurationError: The text is no such time; `flag` is named.
    """
    found = _SHAPE.fullmatch(text.strip().lower())
    if found is None or int(found[1]) == 0:
        raise ConfigurationError(f"{flag}: {text!r} is no time; expected one such as 90s, 15m, 1h or 30d")
    return int(found[1]) * _UNITS_S[found[2]]
