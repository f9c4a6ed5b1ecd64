"""Images of the library."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from protocol.trust.statement import SignedStatement
from sender.actors import Actor
from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit, page_of
from sender.api.bodies.responses import Page, ScanStarted, SignatureView
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.images import (
    ImageChange,
    ImageInput,
    KeepDays,
    KeepLast,
    PruneInput,
    SignatureInput,
)
from sender.api.routes.parameters import ImageIdPath, OlderImage
from sender.daemon.context import Services
from sender.imaging.contents.image_contents import FoundContents
from sender.imaging.contents.image_diff import ImageDiff
from sender.refusals import not_found
from sender.store.records.images import Image
from sender.store.records.pruning import KEEP_LAST_DEFAULT, PrunePolicy, PrunePreview


async def list_images(
    services: ServicesOf, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[Image]:
    """List the library's images, by name.

    Damaged files are included; ``problem`` explains the damage.
    """
    items, next_cursor = page_of(
        services.library.images(), lambda image: f"{image.name.casefold()}\n{image.image_id}", cursor, limit
    )
    return Page(items=items, next_cursor=next_cursor)


async def get_image(services: ServicesOf, image_id: ImageIdPath) -> Image:
    """Show an image.

    An image that was cast stays visible after its file is gone.
    """
    image = services.library.get(image_id)
    if image is None:
        image = await services.store.run(services.store.images.get, image_id)
    if image is None:
        raise not_found("image", image_id)
    return image


async def change_image(
    services: ServicesOf, actor: ActorOf, image_id: ImageIdPath, body: ImageChange
) -> Image:
    """Change the given fields of an image: its note, and its pin.

    The image's file stays as it is.
    """
    return await services.library.change(image_id, actor, **body.given())


async def add_image(services: ServicesOf, actor: ActorOf, body: ImageInput) -> Image:
    """Add a remote image to the library.

    It is fetched when a cast needs it, or on request.
    """
    return await services.library.add_remote(body.url, body.name, actor)


async def fetch_image(services: ServicesOf, actor: ActorOf, image_id: ImageIdPath) -> Image:
    """Start to fetch a remote image into the cache.

    The response doesn't wait for the fetch.
    """
    image = await services.library.fetch(image_id)
    await _note(services, actor, "image.fetch", image_id, {"name": image.name})
    return image


async def get_signature(services: ServicesOf, image_id: ImageIdPath) -> SignatureView:
    """Show an image's signature.

    To sign an image, an operator builds a statement with the image's id and a higher version, and signs it on a machine
    of their own: `diskcast images sign` does that.
    """
    signature = services.library.signature(image_id)
    image = services.library.get(image_id)
    return SignatureView(
        image_id=image_id,
        name=image.name if image is not None else "",
        statement="" if signature.signed is None else signature.signed.statement.decode("ascii"),
        signature="" if signature.signed is None else signature.signed.signature,
        public_key="" if signature.signer is None else signature.signer.text,
    )


async def sign_image(
    services: ServicesOf, actor: ActorOf, image_id: ImageIdPath, body: SignatureInput
) -> Image:
    """Keep the signature that an operator made for an image.

    The daemon has no signing key. It checks that the key signed the statement, and that the statement is about this
    image and has a higher version than the present one; each machine decides whether it trusts the key.
    """
    signed = SignedStatement(body.statement.encode(), body.signature)
    await services.library.sign(image_id, signed, body.public_key, actor)
    image = services.library.get(image_id)
    if image is None:
        raise not_found("image", image_id)
    return image


async def forget_image(services: ServicesOf, actor: ActorOf, image_id: ImageIdPath) -> Response:
    """Forget a remote image and delete its cached copy.

    An image in a folder is removed by removing its file.
    """
    await services.library.forget(image_id, actor)
    return Response(status_code=204)


async def get_image_contents(services: ServicesOf, image_id: ImageIdPath) -> FoundContents:
    """Show the contents of an image: partitions, filesystems, free space, operating systems.

    They are read through the image in the background, once.
    """
    await get_image(services, image_id)
    found = await services.library.inspection.contents(image_id)
    if found.contents is None:
        return found
    # Thousands of patterns, for the daemon's own preflight.
    return dataclasses.replace(found, contents=dataclasses.replace(found.contents, packed_aliases=""))


async def diff_images(services: ServicesOf, image_id: ImageIdPath, older: OlderImage) -> ImageDiff:
    """Compare an image with an older one: blocks, bytes, partitions.

    `sent_bytes` is the data that a cast sends to a machine that has the older image on its disk.
    """
    return await services.library.inspection.diff(older, image_id)


async def preview_pruning(
    services: ServicesOf,
    keep_last: Annotated[KeepLast, Query()] = KEEP_LAST_DEFAULT,
    younger_than_days: Annotated[KeepDays, Query()] = 0,
) -> PrunePreview:
    """Show which images a policy would delete, and why it keeps the others.

    Pinned images, and those of schedules, casts and rooms, are always kept; files outside of the daemon's own folder
    and cache are never deleted.
    """
    return await services.pruner.preview(PrunePolicy(keep_last, younger_than_days))


async def prune_images(services: ServicesOf, actor: ActorOf, body: PruneInput) -> PrunePreview:
    """Delete the images that a preview showed.

    409 if something else would be deleted now.
    """
    policy = PrunePolicy(body.keep_last, body.younger_than_days)
    return await services.pruner.apply(policy, body.preview, actor)


async def scan_images(services: ServicesOf) -> ScanStarted:
    """Scan the library's folders and remotes now."""
    await services.library.scan()
    return ScanStarted(started=True)


async def _note(
    services: Services, actor: Actor, action: str, image_id: str, detail: dict[str, object]
) -> None:
    await services.store.run(
        services.store.audit.add, actor.name, action, f"image {image_id}", detail, actor.request_id
    )
