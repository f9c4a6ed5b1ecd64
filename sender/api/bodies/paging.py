"""Pages of lists: the parameters of every list, and pages of lists in memory."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Annotated, Final, TypeVar

from fastapi import Query

from sender.refusals import RequestRefusedError

LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 500
CURSOR_CHARACTERS_MAX: Final = 2048

Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Maximum number of items on the page.")]
Cursor = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=CURSOR_CHARACTERS_MAX,
        pattern="^[A-Za-z0-9_=-]+$",
        description="`next_cursor` of the previous page.",
    ),
]

ItemT = TypeVar("ItemT")


def page_of(
    items: Iterable[ItemT], key: Callable[[ItemT], str], cursor: str | None, limit: int
) -> tuple[list[ItemT], str | None]:
    """Return a page of ``items`` in the order of ``key``; items added or removed between requests don't shift pages.

    Raises:
        RequestRefusedError: 422 if the cursor is invalid.
    """
    after = _decode(cursor) if cursor is not None else None
    rest = sorted((item for item in items if after is None or key(item) > after), key=key)
    page = rest[:limit]
    return page, _encode(key(page[-1])) if len(rest) > limit else None


def _encode(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode(cursor: str) -> str:
    try:
        return base64.b64decode(cursor, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise RequestRefusedError(
            HTTPStatus.UNPROCESSABLE_ENTITY, "cursor: not a next_cursor of this list; start without a cursor"
        ) from error
