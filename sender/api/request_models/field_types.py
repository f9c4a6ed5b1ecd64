"""Types of fields that several resources have; each has a limit.

Text must be printable and on one line, since it is shown on terminals, in metric labels and in spreadsheets.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints

NAME_CHARACTERS_MAX: Final = 64
TEXT_CHARACTERS_MAX: Final = 1000
MACHINE_ID_CHARACTERS_MAX: Final = 64
_YEARS: Final = range(2, 9999)
"""Times near the calendar's ends overflow when converted to another time zone."""

# Control characters, invisible characters and direction overrides, which could disguise a name.
_UNPRINTABLE: Final = (
    r"\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff0-\uffff"
)
TEXT_PATTERN: Final = f"^[^{_UNPRINTABLE}]*$"
NAME_PATTERN: Final = f"^[^{_UNPRINTABLE}\\s](?:[^{_UNPRINTABLE}]*[^{_UNPRINTABLE}\\s])?$"
NOTE_PATTERN: Final = f"^(?:[^{_UNPRINTABLE}]|\\n)*$"
"""Text of several lines."""
ROOM_ID_PATTERN: Final = "^[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?$"
MAC_PATTERN: Final = "^[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}$"
CAST_ID_PATTERN: Final = "^[0-9a-f]{8}$"
IMAGE_ID_PATTERN: Final = "^(?:[a-z]{1,8}:)?[0-9a-f]{8,64}$"
PLAIN_ID_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS_MAX, pattern=NAME_PATTERN)]
ShortText = Annotated[str, StringConstraints(max_length=NAME_CHARACTERS_MAX, pattern=TEXT_PATTERN)]
Text = Annotated[str, StringConstraints(max_length=TEXT_CHARACTERS_MAX, pattern=TEXT_PATTERN)]
Note = Annotated[str, StringConstraints(max_length=TEXT_CHARACTERS_MAX, pattern=NOTE_PATTERN)]
RoomId = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=ROOM_ID_PATTERN)]
MachineId = Annotated[
    str, StringConstraints(min_length=1, max_length=MACHINE_ID_CHARACTERS_MAX, pattern=PLAIN_ID_PATTERN)
]
ImageReference = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=NAME_PATTERN)]


def _mac(text: str) -> str:
    plain = text.lower().replace("-", ":")
    if plain in ("00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff"):
        raise ValueError(f"{text} isn't the address of a machine")
    return plain


Mac = Annotated[str, StringConstraints(pattern=MAC_PATTERN), AfterValidator(_mac)]


def _time_text(value: object) -> object:
    """Accept RFC 3339 text only: pydantic alone would also accept seconds since 1970."""
    if not isinstance(value, str) or not re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", value):
        raise ValueError("expected a time such as 2030-01-31T18:00:00Z")
    return value


def _utc(value: datetime) -> datetime:
    if value.year not in _YEARS:
        raise ValueError("the year is out of range")
    return value.astimezone(UTC)


Time = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_time_text), AfterValidator(_utc)]


def whole_number(value: object) -> object:
    """Accept 3.0 as 3, since JSON has one type of number, but no text or boolean.

    A field's limits stand before this validator, or its schema in the OpenAPI document would be without them.
    """
    if isinstance(value, str | bool):
        raise ValueError("expected a number")
    return value
