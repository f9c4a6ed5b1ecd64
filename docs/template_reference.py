"""The tables of docs/reference/template.md, from the fields of templates and the variables of machines."""

from __future__ import annotations

from sender.patches.machines_file import BUILT_IN_VARIABLES
from sender.patches.template_fields import TABLES, FieldKind

_TITLES = {
    "": "The template",
    "filesystem": "`[filesystem]`",
    "users": "`[[users]]`",
    "network": "`[network]`",
    "files": "`[[files]]`",
    "first_boot": "`[[first_boot]]`",
}


def field_tables() -> str:
    parts = []
    for table, fields in TABLES.items():
        rows = ["| key | value | meaning |", "|---|---|---|"]
        for field in fields:
            limit = (
                f", at most {field.count_max}" if field.kind in (FieldKind.TEXTS, FieldKind.TABLES) else ""
            )
            required = "; required" if field.required else ""
            rows.append(f"| `{field.name}` | {field.kind}{limit} | {field.meaning}{required} |")
        parts.append(f"## {_TITLES[table]}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def variable_table() -> str:
    rows = ["| variable | value |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {meaning} |" for name, meaning in BUILT_IN_VARIABLES.items())])
