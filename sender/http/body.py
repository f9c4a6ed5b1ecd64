"""Reading a request's body within limits."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from sender.http.connections import widen
from sender.http.protocol import BODY_S

_LENGTH_DIGITS_MAX: Final = 12
_LARGE_BYTES: Final = 1 << 20
"""Length from which a body is worth a larger buffer of its connection."""


def body_length_untrusted(request: Request, bytes_max: int) -> int:
    """Return Content-Length; 0 if there is none, which means that there is no body.

    Raises:
        HTTPException: 413 if the body is longer than ``bytes_max``.
    """
    text = request.headers.get("content-length", "0")
    if not (text.isascii() and text.isdigit()) or len(text) > _LENGTH_DIGITS_MAX or int(text) > bytes_max:
        raise _too_large(bytes_max)
    return int(text)


async def read_body_untrusted(request: Request, bytes_max: int) -> bytes:
    """Return the body.

    Its bytes are counted as they arrive: the limit holds even if a proxy or the HTTP parser misreads the length.

    Raises:
        HTTPException: 413 if the body is longer than ``bytes_max``, 408 if it takes too long, 400 if the connection
            ends within it.
    """
    if body_length_untrusted(request, bytes_max) >= _LARGE_BYTES:
        widen(request)
    pieces: list[bytes] = []
    read_bytes = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                read_bytes += len(piece)
                if read_bytes > bytes_max:
                    raise _too_large(bytes_max)
                pieces.append(piece)
    except TimeoutError as error:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT, f"incomplete body after {BODY_S:g} s: retry"
        ) from error
    except ClientDisconnect as error:
        raise HTTPException(
            HTTPStatus.BAD_REQUEST, "the connection was closed before the body was complete"
        ) from error
    return b"".join(pieces)


def _too_large(bytes_max: int) -> HTTPException:
    # The rest of the body isn't read, so the connection can't be reused.
    return HTTPException(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is too large: at most {bytes_max} bytes are accepted here",
        {"Connection": "close"},
    )
