"""Sizes, times and speeds for people."""


def gibibytes(size_bytes: float) -> str:
    """A size: `1.5 GiB`, `300 MiB`."""
    mebibytes = size_bytes / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"


def milliseconds(time_ms: float) -> str:
    """A time: `123 ms`, `4.56 ms`."""
    return f"{time_ms:.0f} ms" if time_ms >= 100 else f"{time_ms:.3g} ms"


def rate(tokens_per_s: float) -> str:
    """A speed: `2,083`, `7.72`."""
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"
