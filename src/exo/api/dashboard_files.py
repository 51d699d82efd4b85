"""The dashboard's built files at `/`; where they are missing, a page that says how to build them."""

from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

DASHBOARD_DIR = Path(__file__).parent / "dashboard"

MISSING_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>exo</title></head>
<body style="font-family: system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem">
<h1>exo is running</h1>
<p>The dashboard has not been built. With Node.js installed, build it in exo's source directory:</p>
<pre>cd dashboard &amp;&amp; npm ci &amp;&amp; npm run build</pre>
<p>Then reload this page. Everything else works without it:</p>
<ul>
<li><a href="/docs">/docs</a>: the API</li>
<li><a href="/state">/state</a>: the cluster as it is</li>
<li><code>exo status</code>, <code>exo chat</code>: the command line</li>
</ul>
</body>
</html>
"""

_CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


class DashboardFiles(StaticFiles):
    """Static files in which a path of the page's own router leads to the page.

    Args:
        directory: Where the files are, or will be.
        routes: The API's routes. Files lie behind them at every path, so that what comes here at a route's path was
            asked with another method than it has.
    """

    def __init__(self, directory: Path, routes: Sequence[APIRoute]) -> None:
        super().__init__(directory=directory, html=True, check_dir=False)
        self._routes = routes

    async def check_config(self) -> None:
        """Accept a directory that is not there: it may be built while the node runs."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file; the page itself for what looks like one of its addresses.

        Raises:
            HTTPException: There is no such file, or the path is a route's that was asked with another method.
        """
        allowed = {
            method
            for route in self._routes
            if route.path_regex.match(scope["path"])
            for method in route.methods or ()
        }
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code != 404 or not is_page_address(path, scope):
                raise
            response = await self._page(scope)
        is_hashed = path.startswith("assets/")
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if is_hashed else "no-cache"
        response.headers["Content-Security-Policy"] = _CONTENT_SECURITY_POLICY
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    async def _page(self, scope: Scope) -> Response:
        try:
            return await super().get_response("index.html", scope)
        except HTTPException as error:
            if error.status_code != 404:
                raise
            return HTMLResponse(MISSING_PAGE)


def is_page_address(path: str, scope: Scope) -> bool:
    """Say whether a browser may ask for a page: the root, or HTML wanted at a path without a file's ending."""
    if path in ("", "."):
        return True
    if "." in path.rpartition("/")[2] or path.startswith("v1/"):
        return False
    return "text/html" in Request(scope).headers.get("accept", "")


def add_dashboard(app: FastAPI, routes: Sequence[APIRoute], directory: Path = DASHBOARD_DIR) -> None:
    """Serve the dashboard at every path that none of the routes has taken. Add it last."""
    app.mount("/", DashboardFiles(directory, routes), name="dashboard")
