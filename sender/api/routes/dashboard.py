"""The dashboard's files."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from sender.api.bodies.static_files import INDEX, DashboardFiles
from sender.refusals import not_found


async def get_dashboard(request: Request) -> Response:
    """Return the dashboard's page."""
    return _file(request, INDEX)


async def get_asset(request: Request, name: str) -> Response:
    """Return a file of the dashboard."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    files: DashboardFiles = request.app.state.dashboard_files
    response = files.response(name, request)
    if response is None:
        raise not_found("file", name[:100])
    return response
