"""Pages that tests use one after another: opening a new one takes longer than most tests do."""

from typing import Any

from browser.driver import Browser, BrowserContext, ConsoleMessage, Error, Page

Options = tuple[tuple[str, Any], ...]


class Pages:
    """The pages of one browser, each used by one test at a time and left as if it were new.

    Every scripted node has a port of its own, so what a page keeps is not the next test's; it is cleared all the same.
    """

    def __init__(self, browser: Browser, timeout_ms: float) -> None:
        self._browser = browser
        self._timeout_ms = timeout_ms
        self._free: dict[Options, list[Page]] = {}

    def take(self, width: int, height: int, color_scheme: str | None, **options: Any) -> Page:
        """Return a blank page; the options are a context's that no page can change."""
        kept = self._free.setdefault(tuple(sorted(options.items())), [])
        page = kept.pop() if kept else self._opened(options)
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=color_scheme or "light")
        page.mouse.move(0, 0)
        return page

    def give_back(self, page: Page, **options: Any) -> None:
        """Take a page back that was taken with these options; one that cannot be cleaned is closed."""
        try:
            page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            page.goto("about:blank")
        except Error:
            page.context.close()
        else:
            self._free[tuple(sorted(options.items()))].append(page)

    def _opened(self, options: dict[str, Any]) -> Page:
        context: BrowserContext = self._browser.new_context(**options)
        context.set_default_timeout(self._timeout_ms)
        return context.new_page()


class ConsoleErrors:
    """What a page complains of; `may_log` is in the words of those complaints that are expected."""

    def __init__(self, page: Page, may_log: str | None) -> None:
        self.found: list[str] = []
        self._page = page
        self._may_log = may_log
        page.on("console", self._on_console)
        page.on("pageerror", self._on_exception)

    def stop(self) -> list[str]:
        """Listen no more, and return what was found."""
        self._page.remove_listener("console", self._on_console)
        self._page.remove_listener("pageerror", self._on_exception)
        return self.found

    def _on_console(self, message: ConsoleMessage) -> None:
        is_expected = self._may_log is not None and self._may_log in message.text
        if message.type in ("error", "warning") and not is_expected:
            self.found.append(f"{message.type}: {message.text} ({message.location.get('url')})")

    def _on_exception(self, error: Error) -> None:
        self.found.append(f"exception: {error}")
