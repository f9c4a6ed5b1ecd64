"""Exports of images to formats of other programs."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sender.api.bodies.downloads import file_response, note_download
from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit, page_of
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.images import ExportInput
from sender.api.routes.parameters import ExportIdPath, ImageIdPath
from sender.export.export_format import ExportFormat
from sender.store.records.image_exports import ImageExport


async def list_exports(
    services: ServicesOf, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[ImageExport]:
    """List exports that wait, are being made, or can be downloaded.

    Each daemon has its own.
    """
    items, next_cursor = page_of(
        services.exports.exports(),
        lambda export: f"{export.created_at.isoformat()}\n{export.export_id}",
        cursor,
        limit,
    )
    return Page(items=items, next_cursor=next_cursor)


async def get_export(services: ServicesOf, export_id: ExportIdPath) -> ImageExport:
    """Show an export: its progress and, at the end, the size of the file or the reason of the failure."""
    return services.exports.get(export_id)


async def add_export(
    services: ServicesOf, actor: ActorOf, image_id: ImageIdPath, body: ExportInput
) -> ImageExport:
    """Export an image to the format of another program.

    The daemon makes one file after the other; each can be downloaded for a day. If the same export exists already, the
    response shows that one.
    """
    return await services.exports.create(image_id, ExportFormat(body.format), actor)


async def remove_export(services: ServicesOf, export_id: ExportIdPath) -> Response:
    """Stop an export, and delete its file."""
    await services.exports.remove(export_id)
    return Response(status_code=204)


async def download_export(
    services: ServicesOf, actor: ActorOf, request: Request, export_id: ExportIdPath
) -> Response:
    """Download the file of an export.

    Ranges are supported, so a broken download can continue.
    """
    export, path = services.exports.file_of(export_id)
    if "range" not in request.headers:
        await note_download(services, actor, export.image_id, export.image_name, export.format)
    return file_response(path, export.file_name)
