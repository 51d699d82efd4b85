"""Chromium, the built dashboard, and a page whose console must stay free of errors."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from browser.scripted_node import ScriptedNode

if TYPE_CHECKING:
    from browser.driver import Browser, Page
    from browser.pages import Pages

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


@pytest.fixture(scope="module")
def pages(browser: "Browser") -> "Pages":
    """Return the browser's pages."""
    from browser.pages import Pages

    return Pages(browser, EXPECT_TIMEOUT_MS)


@pytest.fixture
def node(dashboard: Path) -> Iterator[ScriptedNode]:
    """Run a scripted node on a free port."""
    scripted = ScriptedNode(dashboard)
    scripted.start()
    yield scripted
    scripted.stop()


OpenPage = Callable[..., "Page"]


@pytest.fixture
def open_page(pages: "Pages") -> "Iterator[OpenPage]":
    """Return what opens a page; at the end of the test its console must hold no error.

    `may_log` names a text that an expected error contains, such as the browser's word for a lost connection.
    `is_touched` makes it a phone's. A page that `has_own_time` is used by no other test.
    """
    from browser.pages import ConsoleErrors

    opened: list[tuple[Page, ConsoleErrors, dict[str, bool]]] = []

    def open_one(
        url: str,
        *,
        width: int = 1440,
        height: int = 900,
        color_scheme: str | None = None,
        may_log: str | None = None,
        is_touched: bool = False,
        has_own_time: bool = False,
    ) -> "Page":
        options = {"has_touch": True, "is_mobile": True} if is_touched else {}
        page = pages.take(width, height, color_scheme, **options)
        opened.append((page, ConsoleErrors(page, may_log), options))
        if has_own_time:
            page.clock.install()
            own.add(page)
        page.goto(url)
        return page

    own: set[Page] = set()
    yield open_one
    errors = [error for _, listener, _ in opened for error in listener.stop()]
    for page, _, options in opened:
        if page in own:
            page.context.close()
        else:
            pages.give_back(page, **options)
    assert not errors, "\n".join(errors)


@pytest.fixture
def screenshot() -> "Callable[[Page, str], None]":
    """Return what keeps a picture of a page, for people to look at, under the folder SCREENSHOTS if that is set."""
    folder = os.environ.get("SCREENSHOTS")

    def take(page: "Page", name: str) -> None:
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", animations="disabled")

    return take
