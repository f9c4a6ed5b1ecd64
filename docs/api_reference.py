"""The reference page of the daemon's API, rendered from its OpenAPI document."""

from __future__ import annotations

import re
from typing import Any

from sender.api.application import api_document

METHODS = ("get", "post", "put", "patch", "delete")


def render() -> str:
    document = api_document()
    parts = ["# The daemon's API\n", document["info"]["description"], INTRODUCTION]
    parts += [_overview(document)]
    for tag in document["tags"]:
        operations = [
            (path, method, item[method])
            for path, item in document["paths"].items()
            for method in METHODS
            if method in item and tag["name"] in item[method].get("tags", ())
        ]
        parts.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}\n")
        parts += [_operation(document, *operation) for operation in operations]
    parts.append("## Records\n\nFields of request and response bodies.\n")
    parts += [
        _record(name, schema)
        for name, schema in sorted(document["components"]["schemas"].items())
        if not name.startswith("Page_")
    ]
    return "\n".join(parts)


INTRODUCTION = """
`GET /api/v1/openapi.json` returns this reference as a machine-readable document (OpenAPI 3.1).

```
$ TOKEN=$(cat ~/.local/state/diskcast/operator-token)
$ curl -s -H "Authorization: Bearer $TOKEN" http://127.0.0.1:7400/api/v1/rooms
$ curl -s -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -H 'Idempotency-Key: monday-101' \\
       -d '{"image": "win11-lab", "room_id": "classroom-101"}' https://images.lan/api/v1/casts
$ curl -N -H "Authorization: Bearer $TOKEN" 'http://127.0.0.1:7400/api/v1/events?topics=overview'
```

"""


def _overview(document: dict[str, Any]) -> str:
    rows = []
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                entry = item[method]
                role = entry["description"].rpartition("Role: ")[2].removesuffix(".")
                anchor = entry["operationId"].replace("_", "-")
                rows.append([f"`{method.upper()}`", f"[`{path}`](#{anchor})", role, entry["summary"]])
    return _table(["method", "path", "role", "purpose"], rows)


def _operation(document: dict[str, Any], path: str, method: str, entry: dict[str, Any]) -> str:
    parts = [
        f"### {entry['operationId'].replace('_', '-')}\n",
        f"`{method.upper()} {path}`: {entry['summary'][:1].lower()}{entry['summary'][1:]}.\n",
        entry["description"] + "\n",
    ]
    rows = [
        [
            f"`{parameter['name']}`",
            parameter["in"],
            _kind(parameter["schema"]),
            _sentence(parameter.get("description", "")),
        ]
        for parameter in entry.get("parameters", ())
    ]
    if rows:
        parts.append(_table(["parameter", "in", "kind", "meaning"], rows))
    if "requestBody" in entry:
        (media_type, body), *_ = entry["requestBody"]["content"].items()
        optional = "" if entry["requestBody"].get("required") else ", optional"
        parts.append(f"Body: {_kind(body['schema'])} (`{media_type}`{optional})\n")
    responses = []
    errors = []
    for status, response in entry["responses"].items():
        if "$ref" in response:
            errors.append(status)
            continue
        content = response.get("content", {})
        kinds = ", ".join(
            f"{_kind(media['schema'])} (`{media_type}`)" for media_type, media in content.items()
        )
        responses.append(f"{status} {kinds or 'nothing'}")
    parts.append(f"Responses: {'; '.join(responses)}. Errors: {', '.join(errors)}.\n")
    return "\n".join(parts)


def _record(name: str, schema: dict[str, Any]) -> str:
    text = " ".join(schema.get("description", "").partition("Attributes:")[0].split()).replace("``", "`")
    parts = [f"### {name}\n", text + "\n"]
    if "enum" in schema:
        parts.append("One of " + ", ".join(f"`{word}`" for word in schema["enum"]) + ".\n")
        return "\n".join(parts)
    meanings = _attributes(schema.get("description", ""))
    required = schema.get("required", ())
    rows = []
    for field, kind in schema.get("properties", {}).items():
        meaning = _sentence(kind.get("description", "")) or meanings.get(field, "")
        default = kind.get("default")
        if field not in required and "default" in kind:
            meaning = f"{meaning} Default: `{str(default).lower() if default in (True, False) else default}`.".strip()
        rows.append([f"`{field}`", _kind(kind), meaning])
    parts.append(_table(["field", "kind", "meaning"], rows))
    return "\n".join(parts)


def _attributes(description: str) -> dict[str, str]:
    """Return the texts of a record's attributes from its docstring."""
    _, _, text = description.partition("Attributes:")
    found: dict[str, str] = {}
    name = ""
    for line in text.strip("\n").splitlines():
        stripped = line.strip()
        head, colon, rest = stripped.partition(": ")
        if colon and head.isidentifier() and len(line) - len(line.lstrip()) <= 4:
            name = head
            found[name] = rest
        elif name:
            found[name] += " " + stripped
    return {key: _sentence(" ".join(value.split()).replace("``", "`")) for key, value in found.items()}


def _sentence(text: str) -> str:
    text = re.sub(r"\bNone\b", "null", " ".join(text.split()))
    text = text[:1].upper() + text[1:] if text[:1].islower() and " " in text else text
    return text if not text or text.endswith((".", "?", "!")) else text + "."


def _kind(schema: dict[str, Any]) -> str:
    """Return a schema as a short text."""
    return _composed(schema) or _plain(schema)


def _composed(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name.startswith("Page_"):
            inner = name.removeprefix("Page_").removesuffix("_")
            return f"page of [{inner}](#{inner.lower()})"
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_kind(kind) for kind in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"`{word}`" for word in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    return ""


def _plain(schema: dict[str, Any]) -> str:
    match schema.get("type"):
        case "array":
            most = f", at most {schema['maxItems']}" if "maxItems" in schema else ""
            return f"list of {_kind(schema.get('items', schema.get('prefixItems', [{}])[0]))}{most}"
        case "string" if schema.get("format") == "date-time":
            return "time"
        case "string":
            most = f" of at most {schema['maxLength']}" if "maxLength" in schema else ""
            return f"text{most}"
        case "integer" | "number" as kind:
            low, high = schema.get("minimum"), schema.get("maximum")
            bounds = f" {low:g} … {high:g}" if low is not None and high is not None else ""
            return f"{kind}{bounds}"
        case "boolean":
            return "true or false"
        case "null":
            return "null"
        case "object":
            return "object"
        case _:
            return "anything"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
