"""API tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from fastapi import Request
from starlette.responses import Response

from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.responses import Page
from sender.api.guard.auth import authenticator_of
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.request_models.tokens import TokenInput
from sender.api.routes.parameters import TokenIdPath
from sender.refusals import invalid, not_found
from sender.store.records.access import NewToken, Role, Token

ENROLMENT_LIFETIME: Final = timedelta(days=30)
"""Default lifetime of a token for enrolment: it lies on live media and in images, where it is soon forgotten."""


async def list_tokens(
    services: ServicesOf, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[Token]:
    """List tokens, without their secrets."""
    items, next_cursor = await services.store.run(services.store.tokens.list, after=cursor, limit=limit)
    return Page(items=items, next_cursor=next_cursor)


async def add_token(services: ServicesOf, actor: ActorOf, request: Request, body: TokenInput) -> NewToken:
    """Create a token.

    Its secret is in this response and isn't stored. A token for enrolment expires after 30 days by default.
    """
    expires_at = body.expires_at
    if body.role is Role.ENROL and expires_at is None:
        expires_at = services.store.now() + ENROLMENT_LIFETIME
    if body.room_id is not None and await services.store.run(services.store.rooms.get, body.room_id) is None:
        raise invalid(f"room_id: there is no room {body.room_id!r}")
    token, secret = await services.store.run(
        services.store.tokens.create,
        body.name,
        body.role,
        expires_at,
        room_id=body.room_id,
        created_by=actor.name,
        audit=actor.note(),
    )
    authenticator_of(request).secrets.add_token(token, secret)
    return NewToken(token=token, secret=secret)


async def remove_token(actor: ActorOf, token_id: TokenIdPath, request: Request) -> Response:
    """Revoke a token and all sessions that were started with it.

    It stops working at once, at other daemons within five seconds.
    """
    if not await authenticator_of(request).revoke_token(token_id, actor.note()):
        raise not_found("token", token_id)
    return Response(status_code=204)
