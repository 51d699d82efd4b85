"""Chromium, the built dashboard, and a page whose console must stay free of errors."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browser.scripted_node import ScriptedNode

if TYPE_CHECKING:
    from browser.driver import Browser, BrowserContext, ConsoleMessage, Page

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "src" / "exo" / "api" / "dashboard"
EXPECT_TIMEOUT_MS = 10_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def dashboard() -> Path:
    """Return the folder of the built dashboard; one older than its sources would test something else."""
    from browser.driver import cannot_run

    index = BUILT / "index.html"
    how = "run: cd dashboard && npm ci && npm run build"
    if not index.is_file():
        cannot_run(f"the dashboard is not built; {how}")
    folder = ROOT / "dashboard"
    files = [path for part in ("src", "public") for path in (folder / part).rglob("*") if path.is_file()]
    # Neither tests nor types are part of what is built.
    sources = [path for path in files if not path.name.endswith(".test.ts") and path.name != "openapi.ts"]
    newest = max([*sources, folder / "index.html", folder / "vite.config.ts"], key=_changed_at_s)
    if _changed_at_s(newest) > _changed_at_s(index):
        cannot_run(f"the dashboard was built before {newest.relative_to(ROOT)} changed; {how}")
    return BUILT


def _changed_at_s(path: Path) -> float:
    return path.stat().st_mtime


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Start the system's Chromium once for the tests of a module."""
    from browser.driver import CHROMIUM_ARGUMENTS, chromium_path, expect, sync_playwright

    executable = chromium_path()
    expect.set_options(timeout=EXPECT_TIMEOUT_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def node(dashboard: Path) -> Iterator[ScriptedNode]:
    """Run a scripted node on a free port."""
    scripted = ScriptedNode(dashboard)
    scripted.start()
    yield scripted
    scripted.stop()


OpenPage = Callable[..., "Page"]


@pytest.fixture
def open_page(browser: "Browser") -> "Iterator[OpenPage]":
    """Return what opens a page in a browser context of its own; afterwards its console must hold no error.

    `may_log` names a text that an expected error contains, such as the browser's word for a lost connection.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def opened(
        url: str, *, width: int = 1440, height: int = 900, may_log: str | None = None, **options: Any
    ) -> "Page":
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(EXPECT_TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()

        def on_console(message: "ConsoleMessage") -> None:
            is_expected = may_log is not None and may_log in message.text
            if message.type in ("error", "warning") and not is_expected:
                errors.append(f"{message.type}: {message.text} ({message.location.get('url')})")

        page.on("console", on_console)
        page.on("pageerror", lambda error: errors.append(f"exception: {error}"))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors, "\n".join(errors)


@pytest.fixture
def screenshot(tmp_path: Path) -> "Callable[[Page, str], None]":
    """Return what keeps a picture of a page: under the folder SCREENSHOTS where that is set, for people to look at."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: "Page", name: str) -> None:
        page.screenshot(path=folder / f"{name}.png", animations="disabled")

    return take
