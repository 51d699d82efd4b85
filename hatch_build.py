"""Build hook: puts the built dashboard into the package, building it with npm when it is missing.

A node works without the dashboard (its page then says how to build it), so nothing here fails a build.
`EXO_SKIP_DASHBOARD=1` leaves the dashboard as it is.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSTALL_TIMEOUT_S = 300.0
BUILD_TIMEOUT_S = 120.0
OUTPUT_TAIL_LINES = 40
HOW_TO_BUILD = "build it with Node.js 20.19 or newer: cd dashboard && npm ci && npm run build"


class StepFailedError(Exception):
    """Raised when npm ended with an error, ran out of time, or could not be started."""


class DashboardBuildHook(BuildHookInterface[Any]):
    """Runs npm before the files of a wheel or a source archive are gathered."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the dashboard when it is missing; `version` is `standard` or `editable`."""
        source = Path(self.root, "dashboard")
        index = Path(self.root, "src", "exo", "api", "dashboard", "index.html")
        if index.is_file() or os.environ.get("EXO_SKIP_DASHBOARD") == "1":
            return
        problem = build(source)
        if problem is None and index.is_file():
            self.app.display_info("The dashboard was built.")
            return
        text = f"this package has no dashboard: {problem or f'npm left no {index}'}"
        if version == "editable":
            self.app.display_info(f"{text}; {HOW_TO_BUILD}")
        else:
            self.app.display_warning(f"{'!' * 78}\n{text}\n{HOW_TO_BUILD}\n{'!' * 78}")


def build(source: Path) -> str | None:
    """Run `npm ci` and `npm run build` in `source`; return why there is no dashboard now, or None."""
    npm = shutil.which("npm")
    if npm is None:
        return "npm is not on PATH"
    if not (source / "package-lock.json").is_file():
        return f"its sources are not in {source}"
    try:
        run_step([npm, "ci", "--no-audit", "--no-fund"], source, INSTALL_TIMEOUT_S)
        run_step([npm, "run", "build"], source, BUILD_TIMEOUT_S)
    except StepFailedError as error:
        return str(error)
    return None


def run_step(command: list[str], directory: Path, timeout_s: float) -> None:
    """Run one npm command with everything it starts.

    Raises:
        StepFailedError: It failed; the message ends with the last lines that it wrote.
    """
    name = " ".join(["npm", *command[1:]])
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise StepFailedError(f"{name} could not be started: {error}") from error
    with process:
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except BaseException as error:
            # npm's own children hold the pipe open and would outlive it.
            stop_group(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise StepFailedError(f"{name} took longer than {timeout_s:.0f} s") from error
            raise
    if process.returncode != 0:
        tail = "\n".join(output.splitlines()[-OUTPUT_TAIL_LINES:])
        raise StepFailedError(f"{name} ended with exit code {process.returncode}\n{tail}")


def stop_group(process: "subprocess.Popen[str]") -> None:
    """Kill npm and what it started (on Windows, which has no process groups of this kind: npm alone)."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        process.kill()
