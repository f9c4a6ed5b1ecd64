"""Hypothesis strategies made from the wire tables: what the format allows is said once."""

from __future__ import annotations

import functools

from hypothesis import strategies as st

from protocol.schema.binary_fields import Bitmap, FieldKind, Octets, Rows, Text, UInt


def values_of(kind: FieldKind) -> st.SearchStrategy[object]:
    """Every value that a field may hold."""
    match kind:
        case UInt():
            return st.integers(kind.low, kind.high)
        case Text():
            return st.text(max_size=kind.bytes_max // 4)
        case Octets():
            return st.binary(min_size=kind.bytes_exact, max_size=kind.bytes_exact)
        case Bitmap():
            return st.binary(max_size=kind.bytes_max)
        case Rows():
            row = st.tuples(*(values_of(column) for _, column in kind.columns))
            rows = st.lists(row, max_size=kind.count_max).map(tuple)
            return rows if kind.sum_column is None else rows.map(functools.partial(_within_sum, kind))


def _within_sum(kind: Rows, rows: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Leave out rows beyond the sum that their kind allows."""
    column_index = [name for name, _ in kind.columns].index(kind.sum_column)
    kept: list[tuple[int, ...]] = []
    for row in rows:
        if sum(other[column_index] for other in kept) + row[column_index] <= kind.sum_max:
            kept.append(row)
    return tuple(kept)


def messages_of(message: type) -> st.SearchStrategy[object]:
    """Every instance of a wire message."""
    return st.builds(message, **{field.name: values_of(field.kind) for field in message.FIELDS})
