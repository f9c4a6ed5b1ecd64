"""API tokens."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from sender.api.bodies.paging import LIMIT_DEFAULT, Cursor, Limit
from sender.api.bodies.request_models import TokenInput
from sender.api.bodies.responses import Page
from sender.api.guard.guarded_route import ActorOf, ServicesOf
from sender.api.routes.parameters import TokenIdPath
from sender.refusals import not_found
from sender.store.records.access import NewToken, Token


async def list_tokens(
    services: ServicesOf, limit: Limit = LIMIT_DEFAULT, cursor: Cursor = None
) -> Page[Token]:
    """List tokens, without their secrets."""
    items, next_cursor = await services.store.run(services.store.tokens.list, after=cursor, limit=limit)
    return Page(items=items, next_cursor=next_cursor)


async def add_token(services: ServicesOf, actor: ActorOf, body: TokenInput) -> NewToken:
    """Create a token.

    Its secret is in this response and isn't stored.
    """
    token, secret = await services.store.run(
        services.store.tokens.create,
        body.name,
        body.role,
        body.expires_at,
        created_by=actor.name,
        audit=actor.note(),
    )
    return NewToken(token=token, secret=secret)


async def remove_token(
    services: ServicesOf, actor: ActorOf, token_id: TokenIdPath, request: Request
) -> Response:
    """Delete a token.

    It stops working within seconds.
    """
    note = actor.note()
    removed = await services.store.run(services.store.tokens.remove, token_id, audit=note)
    request.app.state.authenticator.forget(token_id)
    if not removed:
        raise not_found("token", token_id)
    return Response(status_code=204)
