"""Casts as clients plan them, turned into plans of the store."""

from __future__ import annotations

from http import HTTPStatus

from sender.api.request_models.casts import PlanInput
from sender.daemon.context import Services
from sender.refusals import RequestRefusedError, invalid
from sender.store.records.casts import CastPlan, StartMode
from sender.store.records.images import LATEST, Image


def image_of(services: Services, reference: str) -> Image:
    """Return the image that the body of a request names.

    Raises:
        RequestRefusedError: 422 if the library has no such image: the body names it, not the path, so it isn't 404.
    """
    try:
        return services.library.resolve(reference)
    except RequestRefusedError as error:
        if error.status is HTTPStatus.NOT_FOUND:
            raise invalid(error) from error
        raise


def plan_of(services: Services, body: PlanInput, *, repeats: bool = False) -> CastPlan:
    """Return the plan that a request describes, with its image looked up in the library.

    With ``repeats``, ``NAME@latest`` is looked up again for each cast.

    Raises:
        RequestRefusedError: 422 if the library has no such image, or the cast is for no machines.
    """
    if body.room_id is None and not body.machine_ids:
        raise invalid(
            "room_id: name a room, or machines with machine_ids: machines get tickets only for casts that are planned "
            "for them"
        )
    image = image_of(services, body.image)
    return CastPlan(
        image_id=image.image_id,
        room_id=body.room_id,
        machine_ids=tuple(dict.fromkeys(body.machine_ids)),
        name=body.name,
        start=StartMode(body.start),
        wait_for=body.wait_for,
        max_wait_s=body.max_wait_s,
        rate_bytes_per_s=body.rate_bytes_per_s,
        rate_max_bytes_per_s=body.rate_max_bytes_per_s,
        share=body.share,
        slow=body.slow,
        slow_below=body.slow_below,
        slow_for_s=body.slow_for_s,
        encrypt=body.encrypt or services.config.casts.encrypt,
        wake=body.wake,
        plain=body.plain,
        latest_of=image.name if repeats and body.image == f"{image.name}@{LATEST}" else "",
    )
