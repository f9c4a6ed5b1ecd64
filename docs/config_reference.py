"""The daemon's configuration as a reference page and an example file, from the models that read it."""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from sender.config.sections import Section
from sender.config.server_config import sections

PAGE = """# Configuration of the daemon

`diskcast serve --config FILE` reads a TOML file. Every key is optional; with an empty file the daemon serves only this
machine. Command-line options override the file. An unknown key is an error, so a typo can't silently leave a default in
place. Relative paths start from the file's folder. Sizes are written as `100GiB` (powers of 1024), rates as `900M`
(bits per second).

Start from the example file [`deploy/diskcast.toml`](../../deploy/diskcast.toml), which has all keys.
`diskcast doctor --server --config FILE` checks whether a file works on this machine.
"""

EXAMPLE_HEAD = """\
# The daemon's configuration:  diskcast serve --config /etc/diskcast/diskcast.toml
# All keys, commented out with their defaults. The same list as a table: docs/reference/configuration.md
# Check a change, as the daemon's user:  diskcast doctor --server --config /etc/diskcast/diskcast.toml
# Apply it:  systemctl restart diskcast
"""

EXAMPLE_SETS = {"state_directory"}
"""Keys that the example sets: the default depends on the user, but the service, its doctor and ``diskcast database``
must use the same folder."""


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _default(field: FieldInfo) -> str:
    words = _extra(field).get("default_words")
    return str(words) if words is not None else f"`{_value(field)}`"


def _value(field: FieldInfo) -> str:
    """Return the default as TOML, whose texts, numbers and booleans have the same syntax as JSON."""
    default = field.default
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return str(_extra(field).get("example") or json.dumps(default))


def _purpose(section: type[Section]) -> str:
    return (inspect.getdoc(section) or "").splitlines()[0]


def _row(name: str, field: FieldInfo) -> str:
    cells = (f"`{name}`", _default(field), field.description or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def render() -> str:
    """Return the reference page."""
    parts = [PAGE]
    for name, section in sections().items():
        rows = [_row(key, field) for key, field in section.model_fields.items()]
        parts.append(
            "\n".join(
                [
                    f"## `[{name}]`",
                    "",
                    _purpose(section),
                    "",
                    "| key | default | meaning |",
                    "|---|---|---|",
                    *rows,
                ]
            )
            + "\n"
        )
    return "\n".join(parts)


def render_example() -> str:
    """Return the example file: keys commented out, with their defaults, or with an example where the default varies."""
    lines = [EXAMPLE_HEAD]
    for name, section in sections().items():
        lines += [f"# {_purpose(section)}", f"[{name}]"]
        for key, field in section.model_fields.items():
            words = _extra(field).get("default_words")
            text = (field.description or "") + (f" Default: {words}." if words is not None else "")
            lines += ["", *textwrap.wrap(text, 110, initial_indent="# ", subsequent_indent="# ")]
            lines.append(f"{'' if key in EXAMPLE_SETS else '#'}{key} = {_value(field)}")
        lines.append("")
    return "\n".join(lines)
