"""Puts the routes together to one application."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from starlette.responses import Response

from exo.api.access_gate import AccessRefused
from exo.api.access_owner import make_owner_key
from exo.api.access_scopes import RouteScopes
from exo.api.context import ApiContext, NodeActions, StartInfo
from exo.api.dashboard_files import DASHBOARD_DIR, add_dashboard
from exo.api.docs_page import CONTENT_SECURITY_POLICY, docs_page
from exo.api.documentation import describe
from exo.api.errors import add_error_handlers, error_response
from exo.api.generation import TokenClient
from exo.api.guard import RequestGuard
from exo.api.openai import routes as openai_routes
from exo.api.routes import audit, cluster, events, instances, keys, nodes, planning, service, tokens
from exo.cluster.coordinator import Coordinator
from exo.settings import Settings

ROUTERS = (
    openai_routes.router,
    # Before /instance/{instance_id}, which would take `previews` for an id.
    planning.router,
    instances.router,
    cluster.router,
    events.router,
    nodes.router,
    tokens.router,
    keys.router,
    audit.router,
    service.router,
)


def create_app(
    *,
    coordinator: Coordinator,
    generation_client: TokenClient,
    settings: Settings,
    started: StartInfo,
    actions: NodeActions | None = None,
    dashboard_dir: Path = DASHBOARD_DIR,
) -> FastAPI:
    """Return the application of one node; `app.state.context` holds what its routes work with."""
    app = routes_only()
    context = ApiContext(
        coordinator=coordinator,
        generation_client=generation_client,
        settings=settings,
        started=started,
        actions=actions,
        owner_key=make_owner_key(settings.home) if settings.is_key_required else None,
    )
    app.state.context = context
    _count_refusals(app, context)
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    app.add_middleware(RequestGuard, context=context, scopes=RouteScopes(routes))
    add_dashboard(app, routes, dashboard_dir)
    return app


def routes_only() -> FastAPI:
    """Return the routes with their documentation and their errors, and nothing behind them."""
    app = FastAPI(
        title="exo",
        version=version("exo"),
        description="One cluster out of unequal hosts that serves language models.",
        # The usual page of documentation loads scripts from other hosts.
        docs_url=None,
        redoc_url=None,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=[
            {"name": "openai", "description": "OpenAI's dialect: any of its client libraries works."},
            {"name": "instances", "description": "Placing models on the cluster."},
            {"name": "cluster", "description": "Reading the cluster."},
            {"name": "access", "description": "Who may come in: nodes, join tokens, API keys; who did what."},
            {"name": "service", "description": "Health, readiness, metrics."},
        ],
    )
    for router in ROUTERS:
        app.include_router(router)
    add_error_handlers(app)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    async def docs() -> HTMLResponse:
        policy = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
        return HTMLResponse(docs_page(openapi()), headers=policy)

    app.openapi = openapi
    app.add_api_route("/docs", docs, include_in_schema=False)
    return app


def _count_refusals(app: FastAPI, context: ApiContext) -> None:
    """Have what a route refuses a key counted and written down like what does not get as far as a route."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, AccessRefused)
        await context.desk.refused(error, request.method, request.url.path)
        return error_response(request.url.path, error)

    app.add_exception_handler(AccessRefused, refused)
