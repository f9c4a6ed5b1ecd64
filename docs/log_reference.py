"""The reference page of the daemon's log events, collected from the calls in the code."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
METHODS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}
LOGGERS = {"log", "_log", "logger", "_logger"}

PAGE = """# Log events

The daemon logs to standard error: one JSON object per line in the journal, coloured lines on a terminal
(see `[log]` in the [configuration](configuration.md)).

```json
{"time": "2026-11-21T20:00:05.120Z", "level": "info", "event": "…", "daemon": "caster-1", "cast": "1a2b3c4d"}
```

| key | meaning |
|---|---|
| `time` | UTC |
| `level` | `debug`, `info`, `warning` or `error` |
| `event` | an event of the table below; `library_message`: the message `text` of a library |
| `daemon` | `server.name` |
| `cast` | eight hexadecimal digits, as on the wire, in the API, in metrics and in history |
| `request_id` | id of the API request that caused the event, as in the response's `X-Request-Id` and the audit log |
| `actor` | actor of that request: the token's name, or `local` |
| `logger` | module |
| `exception` | traceback |

An `error` needs action now, a `warning` needs attention soon. `info` records normal operation; `debug` helps to find
bugs in diskcast itself. Tokens, passwords, passwords in URLs and the signatures of links are replaced by `***`. Texts
are truncated to 4,000 characters.

```console
$ journalctl -u diskcast -p warning  # warnings and errors
$ journalctl -u diskcast -o cat | jq -Rc 'fromjson? | select(.cast == "1a2b3c4d")'  # one cast
```

Events of a cast are also logged under the names of its timeline (`receiver_joined`, `casting_started`,
`receiver_completed` …), with the fields `machine` and `text`.

| event | level | fields | module |
|---|---|---|---|
"""


def render() -> str:
    """Return the reference page."""
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
    """Return name, level and fields of a logging call; None for any other node."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)):
        return None
    name, level = node.args[0].value, _level(node.func)
    if level is None or not isinstance(name, str):
        return None
    return name, level, {keyword.arg for keyword in node.keywords if keyword.arg} - {"exc_info"}


def _level(function: ast.expr) -> str | None:
    """Return the level of a logger's method, ``info or warning`` if the code chooses; None for other functions."""
    if isinstance(function, ast.Attribute) and function.attr in METHODS and _is_logger(function.value):
        return METHODS[function.attr]
    if isinstance(function, ast.IfExp):
        levels = [_level(function.body), _level(function.orelse)]
        return " or ".join(level for level in levels if level) or None
    if (
        isinstance(function, ast.Call)
        and isinstance(function.func, ast.Name)
        and function.func.id == "getattr"
        and _is_logger(function.args[0])
    ):
        return "varies"
    return None


def _is_logger(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id in LOGGERS) or (
        isinstance(node, ast.Attribute) and node.attr in LOGGERS
    )
