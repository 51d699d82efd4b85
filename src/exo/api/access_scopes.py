"""Which scope each route of the API needs. A route that is missing here needs `admin`, and fails a test."""

import re
from collections.abc import Sequence
from typing import Literal

from fastapi.routing import APIRoute

from exo.shared.types.access import Scope

Needed = Scope | Literal["open"]
"""`open`: for everybody who is answered at all."""

ROUTE_SCOPES: dict[tuple[str, str], Needed] = {
    # Probes and pages that tell nothing about the cluster; the dashboard's files are open, too.
    ("GET", "/healthz"): "open",
    ("GET", "/readyz"): "open",
    ("GET", "/docs"): "open",
    ("GET", "/openapi.json"): "open",
    # Looking at the cluster.
    ("GET", "/state"): "read",
    ("GET", "/events"): "read",
    ("GET", "/gpu/info"): "read",
    ("GET", "/devices/known"): "read",
    ("GET", "/metrics"): "read",
    ("GET", "/models"): "read",
    ("GET", "/peers"): "read",
    ("GET", "/nodes"): "read",
    ("GET", "/instance"): "read",
    ("GET", "/instance/{instance_id}"): "read",
    ("GET", "/instance/{instance_id}/wait"): "read",
    # Using its models. A first use may place the model: that is what `--no-auto-place` is for.
    ("POST", "/v1/chat/completions"): "infer",
    ("POST", "/v1/completions"): "infer",
    ("GET", "/v1/models"): "infer",
    ("GET", "/v1/models/{model_id:path}"): "infer",
    # Changing what runs. Previews, plans and explanations decide nothing, but keep a solver busy.
    ("POST", "/instance"): "operate",
    ("DELETE", "/instance/{instance_id}"): "operate",
    ("GET", "/instance/previews"): "operate",
    ("POST", "/instance/plan"): "operate",
    ("GET", "/instance/{instance_id}/why"): "operate",
    # Deciding who may come in, and seeing who did what.
    ("POST", "/tokens"): "admin",
    ("GET", "/tokens"): "admin",
    ("DELETE", "/tokens/{token_id}"): "admin",
    ("POST", "/keys"): "admin",
    ("GET", "/keys"): "admin",
    ("DELETE", "/keys/{key_id}"): "admin",
    ("POST", "/nodes/{node_id}/approve"): "admin",
    ("POST", "/nodes/{node_id}/decline"): "admin",
    ("POST", "/nodes/forget"): "admin",
    ("DELETE", "/nodes/{node_id}"): "admin",
    ("POST", "/access/join"): "admin",
    ("GET", "/audit"): "admin",
    ("GET", "/audit/verification"): "admin",
}


def needed_scope(method: str, path_template: str) -> Needed:
    """Return what a route needs."""
    key = ("GET" if method == "HEAD" else method, path_template)
    return ROUTE_SCOPES.get(key, "admin")


class RouteScopes:
    """Finds the scope of a request in the order in which the router would find its route.

    Args:
        routes: The API's routes, in order.
    """

    def __init__(self, routes: Sequence[APIRoute]) -> None:
        self._patterns: list[tuple[re.Pattern[str], frozenset[str], str]] = [
            (route.path_regex, frozenset(route.methods or ()), route.path) for route in routes
        ]

    def of(self, method: str, path: str) -> Needed:
        """Return the scope that a request needs."""
        fixed = ROUTE_SCOPES.get((method, path))
        if fixed is not None:
            return fixed
        is_known = False
        for pattern, methods, template in self._patterns:
            if pattern.match(path):
                if method in methods or (method == "HEAD" and "GET" in methods):
                    return needed_scope(method, template)
                is_known = True
        # A wrong method is told to whoever may look around; the rest are the dashboard's files, or nothing.
        return "read" if is_known else "open"
