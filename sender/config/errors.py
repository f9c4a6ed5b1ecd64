"""Explain the errors of a configuration in one message: file, key, cause and fix."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import pydantic

PROBLEMS_SHOWN_MAX = 5
"""More problems in one message would be unreadable."""

Tables = Mapping[str, type[pydantic.BaseModel]]
"""The tables of the file by name."""


def explain(
    error: pydantic.ValidationError, tables: Tables, origin: str, overridden: Mapping[str, str]
) -> str:
    """Return the problems of a file, one a line: place, cause and fix."""
    lines = []
    for problem in error.errors(include_url=False, include_input=False)[:PROBLEMS_SHOWN_MAX]:
        names = [part for part in problem["loc"] if isinstance(part, str)]
        key = ".".join(names[:2])
        index = next((f"[{part}]" for part in problem["loc"] if isinstance(part, int)), "")
        where = overridden.get(key, origin)
        lines.append(
            f"{where}: {key}{index}: {_cause(problem, names, tables)}"
            if key
            else f"{where}: {_cause(problem, names, tables)}"
        )
    if error.error_count() > PROBLEMS_SHOWN_MAX:
        lines.append(f"and {error.error_count() - PROBLEMS_SHOWN_MAX} more")
    return "\n".join(lines)


def _cause(problem: Any, names: list[str], tables: Tables) -> str:
    """Return the cause of one problem, in plainer text than pydantic's where possible."""
    if problem["type"] == "extra_forbidden":
        return _unknown_key(names, tables)
    if problem["type"] == "model_type":
        return f"this is a table: write [{names[0]}] and its keys below it"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:] if message.startswith("Input") else message


def _unknown_key(names: list[str], tables: Tables) -> str:
    if len(names) == 1:
        return _suggest("unknown table or key", names[0], list(tables), _tables_with(names[0], tables))
    return _suggest(
        "unknown key", names[1], list(tables[names[0]].model_fields), _tables_with(names[1], tables)
    )


def _tables_with(key: str, tables: Tables) -> list[str]:
    """Return the tables that have this key."""
    return [name for name, section in tables.items() if key in section.model_fields]


def _suggest(problem: str, name: str, known: list[str], elsewhere: list[str]) -> str:
    if elsewhere:
        return f"{problem}; it belongs in [{elsewhere[0]}]"
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"{problem}; did you mean {close[0]}?"
    return f"{problem}; use one of {', '.join(known)}"
