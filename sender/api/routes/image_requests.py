"""Requests of machines to be imaged: machines make them, operators decide them."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from protocol.control.control_messages import parse_json_untrusted
from protocol.control.image_requests import IMAGE_CHOICE, LIBRARY_IMAGES, REQUEST_STATUS
from sender.api.bodies.responses import Page
from sender.api.guard.auth import Principal
from sender.api.guard.guarded_route import ActorOf, PrincipalOf, ServicesOf
from sender.api.guard.problems import ascii_json
from sender.api.request_models.machines import ApprovalInput
from sender.api.routes.parameters import MachineIdPath, RequestCodePath
from sender.refusals import forbidden
from sender.store.records.casts import Cast
from sender.store.records.image_requests import ImageRequest


async def list_machine_images(
    services: ServicesOf, principal: PrincipalOf, machine_id: MachineIdPath
) -> Response:
    """List the images that a machine may request, with their signatures.

    The bearer is the machine's secret.
    """
    _require_own(principal, machine_id)
    return _json(LIBRARY_IMAGES.encode(services.image_requests.images()))


async def request_image(
    services: ServicesOf, principal: PrincipalOf, request: Request, machine_id: MachineIdPath
) -> Response:
    """Request an image for a machine, as a technician chose it at the machine's console.

    The bearer is the machine's secret. Nothing is started: an operator compares the code of the response with the one
    on the machine's screen, and approves or declines within 30 minutes. A request replaces the machine's earlier one.
    """
    _require_own(principal, machine_id)
    choice = IMAGE_CHOICE.decode_untrusted("request", parse_json_untrusted(await request.body()))
    address = request.client.host if request.client else ""
    return _json(REQUEST_STATUS.encode(await services.image_requests.ask(machine_id, choice, address)), 201)


async def get_image_request(
    services: ServicesOf, principal: PrincipalOf, machine_id: MachineIdPath, code: RequestCodePath
) -> Response:
    """Show the state of a machine's request.

    The bearer is the machine's secret.
    """
    _require_own(principal, machine_id)
    return _json(REQUEST_STATUS.encode(await services.image_requests.status(machine_id, code)))


async def list_image_requests(services: ServicesOf) -> Page[ImageRequest]:
    """List the requests that wait for a decision, the oldest first.

    The list is a single page.
    """
    return Page(items=await services.image_requests.waiting(), next_cursor=None)


async def approve_image_request(
    services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath, body: ApprovalInput
) -> Cast:
    """Approve a machine's request: plan a cast of the image for this machine alone.

    The code must be the one that the machine shows.
    """
    return await services.image_requests.approve(machine_id, body.code, actor)


async def decline_image_request(
    services: ServicesOf, actor: ActorOf, machine_id: MachineIdPath, body: ApprovalInput
) -> ImageRequest:
    """Decline a machine's request.

    The code must be the one that the machine shows.
    """
    return await services.image_requests.decline(machine_id, body.code, actor)


def _require_own(principal: Principal, machine_id: str) -> None:
    """Refuse the secret of another machine."""
    if principal.machine_id != machine_id:
        raise forbidden("a machine's secret is for the paths of that machine alone")


def _json(document: object, status: int = 200) -> Response:
    return Response(ascii_json(document), status, media_type="application/json")
