"""Playwright and Chromium, or the reason why there are none: skipped on a desk, a failure where CI requires them."""

import os
import shutil
from typing import NoReturn

import pytest

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)


def cannot_run(reason: str) -> NoReturn:
    """Skip, or fail where these tests are required."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)


try:
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        Error,
        Locator,
        Page,
        expect,
        sync_playwright,
    )
except ImportError:
    cannot_run("playwright is not installed; run: uv sync --group browser")


def chromium_path() -> str:
    """Return the system's Chromium."""
    path = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    if path is None:
        cannot_run("Chromium is not installed; on Debian: apt install chromium")
    return path


__all__ = [
    "CHROMIUM_ARGUMENTS",
    "Browser",
    "BrowserContext",
    "ConsoleMessage",
    "Error",
    "Locator",
    "Page",
    "cannot_run",
    "chromium_path",
    "expect",
    "sync_playwright",
]
