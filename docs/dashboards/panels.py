"""Grafana panels as functions: a dashboard only gives titles, descriptions and queries."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

Json = dict[str, Any]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
"""The data source that the viewer chose: an exported one would exist only in one Grafana."""
WIDTH = 24
"""Columns of Grafana's grid."""
NAMES = {"fleet": "diskcast-fleet", "cast": "diskcast-cast", "machine": "diskcast-machine"}
"""Uids of the dashboards; links and bookmarks refer to them."""

BOTTLENECKS = {"network": "green", "socket": "orange", "decode": "yellow", "disk": "red"}
STATES = {
    "joined": "blue",
    "receiving": "super-light-blue",
    "complete": "green",
    "failed": "red",
    "lost": "dark-red",
    "dropped": "orange",
}


def query(expression: str, legend: str, *, table: bool = False) -> Json:
    """Return a query of a panel; :func:`_panel` adds its letter."""
    mode = (
        {"range": False, "instant": True, "format": "table"} if table else {"range": True, "instant": False}
    )
    return {"datasource": SOURCE, "editorMode": "code", "expr": expression, "legendFormat": legend, **mode}


def thresholds(*steps: tuple[float | None, str]) -> Json:
    """Return the colour from each value upwards; the first value is None, the lowest."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for value, color in steps]}


GOOD_IS_NOTHING = thresholds((None, "green"), (1, "red"))
GOOD_IS_ONE = thresholds((None, "red"), (1, "green"))
PLAIN = thresholds((None, "text"))


def stat(
    title: str,
    description: str,
    queries: Sequence[Json],
    *,
    size: tuple[int, int] = (4, 4),
    unit: str = "short",
    steps: Json = PLAIN,
    names_only: bool = False,
    links: Sequence[Json] = (),
) -> Json:
    """Return a panel of large numbers, or of the names of the current series.

    The queries are instant ones: over a range, a label for a state has a series for each state in that time.
    """
    queries = [{**target, "range": False, "instant": True} for target in queries]
    mode = "name" if names_only else "value_and_name" if len(queries) > 1 else "auto"
    defaults = {"unit": unit, "thresholds": steps, "links": list(links)}
    if unit == "percentunit":
        defaults |= {"min": 0, "max": 1, "decimals": 1}
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": mode,
        "colorMode": "none" if steps is PLAIN else "value",
        "graphMode": "none",
        "orientation": "auto",
        "justifyMode": "auto",
    }
    return _panel("stat", title, description, queries, size, defaults, options)


def chart(
    title: str,
    description: str,
    queries: Sequence[Json],
    *,
    size: tuple[int, int] = (8, 8),
    unit: str = "short",
    steps: Json | None = None,
    stacked: bool = False,
    points: bool = False,
    links: Sequence[Json] = (),
) -> Json:
    """Return a panel of lines over time; ``steps`` are drawn as horizontal lines."""
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 40 if stacked else 10,
        "showPoints": "auto" if points else "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    if steps is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
    defaults: Json = {"unit": unit, "min": 0, "custom": custom, "links": list(links)}
    defaults["thresholds"] = steps or PLAIN
    if unit == "percentunit" and not stacked:
        defaults["max"] = 1
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return _panel("timeseries", title, description, queries, size, defaults, options)


def timeline(
    title: str,
    description: str,
    queries: Sequence[Json],
    values: Sequence[tuple[int, str, str]],
    *,
    size: tuple[int, int] = (8, 8),
    links: Sequence[Json] = (),
) -> Json:
    """Return a panel with a coloured bar for each series; ``values`` are number, text and colour."""
    shown = {str(number): {"text": text, "color": color, "index": number} for number, text, color in values}
    defaults = {
        "unit": "short",
        "mappings": [{"type": "value", "options": shown}],
        "thresholds": PLAIN,
        "custom": {"fillOpacity": 70, "lineWidth": 0},
        "links": list(links),
    }
    options = {
        "mergeValues": True,
        "showValue": "auto",
        "rowHeight": 0.8,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return _panel("state-timeline", title, description, queries, size, defaults, options)


def table(
    title: str,
    description: str,
    columns: Sequence[tuple[str, str, str]],
    labels: dict[str, str],
    *,
    size: tuple[int, int] = (12, 8),
    sort: tuple[str, bool] | None = None,
    steps: dict[str, Json] | None = None,
    links: Sequence[Json] = (),
) -> Json:
    """Return a table with a row for each set of labels.

    Args:
        title: title of the panel.
        description: description of the panel.
        columns: query, heading and unit of each column of values; all have the same labels. A column whose value is
            always 1 has an empty heading and is hidden.
        labels: headings of the columns of labels.
        size: columns and rows of the grid.
        sort: heading, and True for descending order.
        steps: thresholds by heading, shown as background colours of the cells.
        links: links of each row.
    """
    queries = [query(expression, heading, table=True) for expression, heading, _ in columns]
    letters = [chr(ord("A") + index) for index in range(len(columns))]
    values = [f"Value #{letter}" for letter in letters] if len(columns) > 1 else ["Value"]
    named = {value: heading for value, (_, heading, _) in zip(values, columns, strict=True) if heading}
    hidden = {value for value, (_, heading, _) in zip(values, columns, strict=True) if not heading}
    overrides = []
    for _, heading, unit in columns:
        if not heading:
            continue
        properties: list[Json] = [{"id": "unit", "value": unit}]
        if unit == "percentunit":
            properties += [{"id": "min", "value": 0}, {"id": "max", "value": 1}]
        if heading in (steps or {}):
            properties += [
                {"id": "thresholds", "value": (steps or {})[heading]},
                {"id": "custom.cellOptions", "value": {"type": "color-background", "mode": "basic"}},
            ]
        overrides.append({"matcher": {"id": "byName", "options": heading}, "properties": properties})
    unwanted = {"Time", "__name__", "instance", "job"} | hidden
    organize = {
        "excludeByName": dict.fromkeys(sorted(unwanted), True),
        "indexByName": {name: index for index, name in enumerate([*labels, *values])},
        "renameByName": labels | named,
    }
    transformations: list[Json] = [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]
    if sort:
        field, descending = sort
        transformations.append({"id": "sortBy", "options": {"sort": [{"field": field, "desc": descending}]}})
    defaults = {"unit": "short", "thresholds": PLAIN, "links": list(links)}
    panel = _panel("table", title, description, queries, size, defaults, {})
    panel["fieldConfig"]["overrides"] = overrides
    panel["transformations"] = transformations
    return panel


def row(title: str) -> Json:
    """Return a heading."""
    return {"type": "row", "title": title, "collapsed": False, "size": (WIDTH, 1), "panels": []}


def link(title: str, name: str, **variables: str) -> Json:
    """Return a link from a value to another dashboard, with values for its variables."""
    parameters = "".join(f"&var-{key}={value}" for key, value in variables.items())
    url = f"/d/{NAMES[name]}?${{__url_time_range}}&var-datasource=${{datasource}}{parameters}"
    return {"title": title, "url": url, "targetBlank": False}


def field(label: str) -> str:
    """Return the reference to a label's value in a link of a chart."""
    return f"${{__field.labels.{label}}}"


def cell(label: str) -> str:
    """Return the reference to a column's value in a link of a table."""
    return f'${{__data.fields["{label}"]}}'


DATASOURCE: Json = {
    "name": "datasource",
    "label": "Data source",
    "description": "The Prometheus that scrapes diskcast.",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
    "hide": 0,
    "multi": False,
    "includeAll": False,
    "skipUrlSync": False,
    "current": {},
    "options": [],
    "regex": "",
}


def variable(name: str, label: str, description: str, definition: str, *, multiple: bool = True) -> Json:
    """Return a variable with values to choose from; ``multiple`` allows several, or all."""
    result: Json = {
        "name": name,
        "label": label,
        "description": description,
        "type": "query",
        "datasource": SOURCE,
        "definition": definition,
        "query": {"qryType": 1, "query": definition, "refId": name},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "skipUrlSync": False,
        "multi": multiple,
        "includeAll": multiple,
        "current": {},
        "options": [],
        "regex": "",
    }
    if multiple:
        result |= {"allValue": ".*", "current": {"selected": True, "text": ["All"], "value": ["$__all"]}}
    return result


def dashboard(
    name: str, title: str, description: str, variables: Sequence[Json], panels: Sequence[Json], *, hours: str
) -> Json:
    """Return the document; panels flow from left to right, in rows as high as their highest panel."""
    others = [
        {
            "title": other,
            "type": "link",
            "icon": "dashboard",
            "tooltip": "",
            "url": f"/d/{uid}?var-datasource=${{datasource}}",
            "keepTime": True,
            "includeVars": False,
            "asDropdown": False,
            "targetBlank": False,
            "tags": [],
        }
        for other, uid in NAMES.items()
        if other != name
    ]
    return {
        "uid": NAMES[name],
        "title": title,
        "description": description,
        "tags": ["diskcast"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": f"now-{hours}", "to": "now"},
        "timezone": "browser",
        "weekStart": "",
        "annotations": {"list": [_annotation()]},
        "links": others,
        "liveNow": False,
        "fiscalYearStartMonth": 0,
        "templating": {"list": [DATASOURCE, *variables]},
        "panels": _place(panels),
    }


def _annotation() -> Json:
    """Return the annotation that marks alerts on every chart."""
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Diskcast.*", alertstate="firing"}',
        "titleFormat": "{{alertname}} {{machine}}",
        "step": "15s",
    }


def _panel(
    kind: str,
    title: str,
    description: str,
    queries: Sequence[Json],
    size: tuple[int, int],
    defaults: Json,
    options: Json,
) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": SOURCE,
        "size": size,
        "targets": [{"refId": chr(ord("A") + index), **target} for index, target in enumerate(queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _place(panels: Sequence[Json]) -> list[Json]:
    placed = []
    number: Callable[[], int] = itertools.count(1).__next__
    x = y = height = 0
    for panel in panels:
        w, h = panel["size"]
        if x + w > WIDTH:
            x, y, height = 0, y + height, 0
        at = {"x": x, "y": y, "w": w, "h": h}
        placed.append(
            {"id": number(), "gridPos": at, **{key: value for key, value in panel.items() if key != "size"}}
        )
        x, height = x + w, max(height, h)
    return placed
