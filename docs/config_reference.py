"""The daemon's configuration as a reference page and as an example file, both from the models that read it."""

from __future__ import annotations

import inspect
import json
import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from sender.config.sections import Section
from sender.config.server_config import sections

PAGE = """# Configuration of the daemon

`diskcast serve --config FILE` reads one TOML file. Every key is optional, and an empty file is a daemon for this
machine alone. Options of the command line win over the file. A key that isn't listed here is an error, so that a typing
mistake never means a default. Relative paths start from the file's folder. Sizes are as in `100GiB` (powers of 1024),
rates as in `900M` (bits per second).

[`deploy/diskcast.toml`](../../deploy/diskcast.toml) is this list as a file to start from;
`diskcast doctor --server --config FILE` says whether a file can work on this machine.
"""

EXAMPLE_HEAD = """\
# The daemon's configuration:  diskcast serve --config /etc/diskcast/diskcast.toml
# Every key is here; those behind a # have their default. docs/reference/configuration.md says the same as a table.
# After a change, as the daemon's user:  diskcast doctor --server --config /etc/diskcast/diskcast.toml
# and then:  systemctl restart diskcast
"""

EXAMPLE_SETS = {"state_directory"}
"""Its default depends on the user, and the service, its doctor and ``diskcast database`` must mean the same folder."""


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def _default(field: FieldInfo) -> str:
    words = _extra(field).get("default_words")
    return str(words) if words is not None else f"`{_value(field)}`"


def _value(field: FieldInfo) -> str:
    """A value as TOML, whose texts, numbers and booleans of ours are JSON's."""
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
    """The reference page."""
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
    """The example file: keys are commented out, with their default or, where that depends, with a possible value."""
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
