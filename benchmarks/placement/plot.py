"""Draws how solves grow, from a file of results: `python -m benchmarks.placement.plot RESULTS.json PICTURE.svg`."""

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 420, 64, 52, 24, 110
COLOURS = ("#4477aa", "#228833", "#ccbb44", "#ee6677")
Point = tuple[int, float]
Scale = Callable[[float], float]


def main() -> None:
    """Read the results that `python -m benchmarks placement growth --json FILE` wrote; write the picture."""
    results = json.loads(Path(sys.argv[1]).read_text())["results"]
    lines: dict[int, list[Point]] = {}
    for result in results:
        found = re.fullmatch(r"growth: (\d+) devices, (\d+) layers", result["name"])
        if found:
            lines.setdefault(int(found[2]), []).append((int(found[1]), float(result["value"])))
    Path(sys.argv[2]).write_text(picture(lines))


def picture(lines: dict[int, list[Point]]) -> str:
    """Return an SVG of milliseconds over devices, both logarithmic, one line for each number of layers."""
    points = [point for line in lines.values() for point in line]
    most_devices, most_ms = max(x for x, _ in points), max(y for _, y in points)
    decades = (-1, math.ceil(math.log10(most_ms)))

    def across(devices: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(devices / 2) / math.log(most_devices / 2)

    def down(ms: float) -> float:
        share = (math.log10(ms) - decades[0]) / (decades[1] - decades[0])
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * share

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for decade in range(decades[0], decades[1] + 1):
        y = down(10.0**decade)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**decade:g} ms</text>')
    for devices in sorted({x for x, _ in points}):
        x = across(devices)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eee"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{devices}</text>')
    for colour, (layers, line) in zip(COLOURS, sorted(lines.items()), strict=False):
        parts.extend(_line(sorted(line), colour, f"{layers} layers", across, down))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">devices</text>')
    return "\n".join([*parts, "</svg>", ""])


def _line(line: Sequence[Point], colour: str, label: str, across: Scale, down: Scale) -> list[str]:
    path = "L".join(f"{across(x):.1f} {down(y):.1f}" for x, y in line)
    x, y = line[-1]
    return [
        f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<text x="{across(x) + 8:.1f}" y="{down(y) + 4:.1f}" fill="{colour}">{label}</text>',
    ]


if __name__ == "__main__":
    main()
