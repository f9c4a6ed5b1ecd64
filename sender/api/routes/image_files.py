"""Files of images: uploads into the library, and downloads."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from starlette.requests import Request
from starlette.responses import Response

from protocol.constants import IMAGE_BYTES_MAX
from sender.api.bodies.downloads import disk_response, file_response, note_download
from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit, page_of
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.images import UploadInput
from sender.api.routes.parameters import ImageIdPath, UploadIdPath
from sender.daemon.exports.disk_stream import StreamFormat
from sender.http.body import read_body_untrusted
from sender.imaging.foreign.sniff import ForeignFormat
from sender.library.upkeep.image_uploads import PART_BYTES_MAX
from sender.refusals import conflict, not_found
from sender.store.records.image_uploads import ImageUpload
from sender.store.records.images import image_reference

PartOffset = Annotated[int, Query(ge=0, lt=IMAGE_BYTES_MAX, description="Offset of the part in the file.")]

DownloadFormat = Annotated[
    Literal["dci", "raw", "raw.zst"], Query(description="The image's file, or its disk.")
]


async def list_uploads(
    services: ServicesOf, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[ImageUpload]:
    """List uploads that are running or have recently ended.

    Each daemon has its own.
    """
    items, next_cursor = page_of(
        services.uploads.uploads(),
        lambda upload: f"{upload.created_at.isoformat()}\n{upload.upload_id}",
        cursor,
        limit,
    )
    return Page(items=items, next_cursor=next_cursor)


async def get_upload(services: ServicesOf, upload_id: UploadIdPath) -> ImageUpload:
    """Show an upload: its progress and, at the end, the image or the reason of the failure."""
    return services.uploads.get(upload_id)


async def add_upload(services: ServicesOf, actor: ActorOf, body: UploadInput) -> ImageUpload:
    """Start to upload an image: a .dci file, or an image of another program, which is converted.

    Send its parts next. When all have arrived, the daemon checks every block, or converts the file in a sandbox; only
    then the image is in the library. A restart of the daemon ends the upload: its parts get 404, and it starts again.
    """
    return await services.uploads.create(
        body.file_name,
        body.total_bytes,
        body.name,
        actor,
        None if body.format is None else ForeignFormat(body.format),
    )


async def put_upload_part(
    services: ServicesOf, request: Request, upload_id: UploadIdPath, offset: PartOffset
) -> ImageUpload:
    """Send the next part of an upload, of at most 4 MiB.

    Parts are sent in order. After a broken connection, `received_bytes` of the upload says where to continue. A file
    that isn't a disk, such as an archive, is refused at its first part (409), which ends the upload.
    """
    return await services.uploads.append(
        upload_id, offset, await read_body_untrusted(request, PART_BYTES_MAX)
    )


async def remove_upload(services: ServicesOf, upload_id: UploadIdPath) -> Response:
    """Stop an upload, and delete what has arrived."""
    await services.uploads.remove(upload_id)
    return Response(status_code=204)


async def download_image(
    services: ServicesOf,
    actor: ActorOf,
    request: Request,
    image_id: ImageIdPath,
    format: DownloadFormat = "dci",  # noqa: A002  the name of the parameter
) -> Response:
    """Download an image's .dci file, or its disk.

    `raw` is the disk, with zeros for free space; `raw.zst` is the same, compressed. Both are made while they are sent,
    and every block is checked before it is. Ranges are supported, so a broken download can continue.
    """
    image = services.library.get(image_id)
    if image is None:
        raise not_found("image", image_id)
    path = services.library.path_of(image_id)
    if path is None:
        raise conflict(f"{image.name} isn't on the daemon's disk: fetch it first")
    name = f"{image_reference(image)}.{format}"
    if "range" not in request.headers:
        await note_download(services, actor, image_id, image_reference(image), format)
    if format == "dci":
        return file_response(path, name)
    return await disk_response(request, path, StreamFormat(format), name)
