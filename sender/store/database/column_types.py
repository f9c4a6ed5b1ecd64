"""Column types that store the same values in SQLite and in PostgreSQL."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

_ISO_MICROSECONDS = "%Y-%m-%dT%H:%M:%S.%fZ"


def clean_text(text: str) -> str:
    """Return ``text`` with U+FFFD for characters that PostgreSQL can't store: NUL and lone surrogates."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
    return text


def clean_json(value: object) -> object:
    """Return ``value`` with clean texts, and with None for numbers that JSON can't express."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(part) for part in value]
    return value


class CleanText(TypeDecorator[str]):
    """Text of any length and content: no text that an agent sends can make a transaction fail."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Clean the text."""
        # Convert members of StrEnum to plain text: drivers treat enums specially.
        return None if value is None else clean_text(str(value))


class CleanJson(TypeDecorator[Any]):
    """A JSON document; ``jsonb`` in PostgreSQL, text in SQLite."""

    impl = sa.JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Use ``jsonb`` in PostgreSQL."""
        return dialect.type_descriptor(postgresql.JSONB() if dialect.name == "postgresql" else sa.JSON())

    def process_bind_param(self, value: object, dialect: Dialect) -> object:
        """Clean the document."""
        return clean_json(value)


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC: ``timestamptz`` in PostgreSQL, text of a fixed width in SQLite, which sorts by time."""

    impl = sa.String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Use ``timestamptz`` in PostgreSQL."""
        if dialect.name == "postgresql":
            return dialect.type_descriptor(postgresql.TIMESTAMP(timezone=True))
        return dialect.type_descriptor(sa.String(27))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Refuse a time without a zone: it is ambiguous."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.strftime(_ISO_MICROSECONDS).rjust(27, "0")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return an aware time."""
        if value is None:
            return None
        if isinstance(value, datetime):
            return value.astimezone(UTC)
        return datetime.strptime(value, _ISO_MICROSECONDS).replace(tzinfo=UTC)


Number64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A 64-bit integer; SQLite autoincrements only columns that are declared INTEGER."""
