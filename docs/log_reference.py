"""The events that the daemon logs, as a reference page, found in the calls of the code."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
LOGGERS = {"log", "_log", "logger", "_logger"}

PAGE = """# Log events

The daemon logs to standard error: one JSON object a line in the journal, coloured lines on a terminal
(`[log]` in the [configuration](configuration.md)).

```json
{"time": "2026-11-21T20:00:05.120Z", "level": "info", "event": "…", "daemon": "caster-1", "cast": "1a2b3c4d"}
```

| key | meaning |
|---|---|
| `time` | UTC |
| `level` | as below |
| `event` | what happened, from the table below; `library_message`: a library said `text` |
| `daemon` | `server.name` |
| `cast` | eight hexadecimal digits, the same on the wire, in the API, in metrics and in history |
| `request_id` | of the API call that led to it; `X-Request-Id` of its answer, and in the audit |
| `actor` | who made that call: the token's name, or `local` |
| `logger` | module |
| `exception` | traceback |

An `error` is for somebody who must do something, a `warning` for somebody who should look at it some time; `info` is
what happened, `debug` is for finding faults of diskcast itself. Tokens, passwords, passwords in URLs and links'
signatures are replaced by `***`. Texts longer than 4,000 characters are cut.

```console
$ journalctl -u diskcast -p warning                                    # what an operator should look at
$ journalctl -u diskcast -o cat | jq -c 'select(.cast == "1a2b3c4d")'  # one cast
```

| event | level | fields | module |
|---|---|---|---|
"""


def render() -> str:
    """The reference page."""
    found: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for path in sorted((ROOT / "sender").rglob("*.py")):
        module = str(path.relative_to(ROOT)).removesuffix(".py").replace("/", ".")
        for node in ast.walk(ast.parse(path.read_text())):
            if (event := _event(node)) is not None:
                name, level, fields = event
                found[name, level, module] |= fields
    rows = [
        f"| `{name}` | {level} | {', '.join(f'`{field}`' for field in sorted(fields))} | `{module}` |"
        for (name, level, module), fields in sorted(found.items())
    ]
    return PAGE + "\n".join(rows) + "\n"


def _event(node: ast.AST) -> tuple[str, str, set[str]] | None:
    """Name, level and fields of a call that logs."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in METHODS
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
        and _is_logger(node.func.value)
    ):
        fields = {keyword.arg for keyword in node.keywords if keyword.arg not in (None, "exc_info")}
        return node.args[0].value, METHODS[node.func.attr], {field for field in fields if field}
    return None


def _is_logger(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id in LOGGERS) or (
        isinstance(node, ast.Attribute) and node.attr in LOGGERS
    )
