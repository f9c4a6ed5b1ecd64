"""Records to JSON and back, guided by their annotations: for plans in the database and for the recorder's spool."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

_T = TypeVar("_T")


def to_data(value: object) -> Any:
    """What JSON can say of a record, of a list of records, or of a plain value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_data(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, dict):
        return {str(to_data(key)): to_data(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_data(part) for part in value]
    return value


@functools.cache
def field_types(record: type) -> dict[str, Any]:
    """Names and types of a record's fields."""
    return typing.get_type_hints(record)


def from_data(kind: Any, data: Any) -> Any:
    """The value of type ``kind`` that :func:`to_data` turned into ``data``.

    A field that ``data`` doesn't have gets its default: a record that was written before the field was there can be
    read. Raises ``ValueError``, ``TypeError`` or ``KeyError`` for anything else.
    """
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        kind = next(part for part in typing.get_args(kind) if part is not types.NoneType)
        return from_data(kind, data)
    if origin in (list, Sequence) or origin is typing.get_origin(Sequence[int]):
        return [from_data(typing.get_args(kind)[0], part) for part in data]
    if origin is tuple:
        return tuple(from_data(typing.get_args(kind)[0], part) for part in data)
    if origin is dict or origin is typing.get_origin(typing.Mapping[str, int]):
        key_kind, value_kind = typing.get_args(kind)
        return {from_data(key_kind, key): from_data(value_kind, part) for key, part in data.items()}
    if isinstance(kind, type):
        if dataclasses.is_dataclass(kind) or typing.is_typeddict(kind):
            hints = field_types(kind)
            return kind(
                **{name: from_data(hints[name], part) for name, part in data.items() if name in hints}
            )
        if issubclass(kind, datetime):
            return datetime.fromisoformat(data)
        if issubclass(kind, enum.Enum):
            return kind(data)
        if kind is float:
            return float(data)
    return data


def record_from(kind: type[_T], data: Any) -> _T:
    """:func:`from_data` for one record."""
    result: _T = from_data(kind, data)
    return result
