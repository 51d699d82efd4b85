#!/usr/bin/env python3
"""Prints the command that starts exo on this machine: with CUDA where there is a GPU and its driver is new enough.

Runs with Python alone, before anything is installed. The command goes to stdout, the reason to stderr.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from exo.cli.nvidia import advise


def main() -> int:
    """Print the advice."""
    advice = advise()
    print(advice.reason, file=sys.stderr)
    print(advice.command)
    return 0


if __name__ == "__main__":
    sys.exit(main())
