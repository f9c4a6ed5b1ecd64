"""Draw the dashboards for the documentation: ``python -m tests.e2e.dashboard_pictures [FOLDER]``, as root.

matplotlib draws them from a real Prometheus's responses to the dashboards' queries, with their layout, units and
thresholds. Grafana looks different.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.dates as mdates
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from protocol.shared.units import format_bytes, format_rate
from tests.e2e.monitored_room import (
    SCRAPE_INTERVAL_S,
    SLOW_DISK,
    Plan,
    Scene,
    monitored_room,
    shipped_dashboards,
    substitute,
)

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "grafana"
PLAN: Final = Plan(blocks=160, healthy_bytes_per_s=7e6, troubled_bytes_per_s=2.2e6, retention_s=600.0)
BYTES_MAX: Final = 200_000
COLORS: Final = 128
DPI: Final = 100
INCHES_PER_COLUMN: Final = 0.64
INCHES_PER_ROW: Final = 0.34
BACKGROUND, PANEL, INK, FAINT = "#f4f5f5", "#ffffff", "#24292e", "#8a8f96"
LINES: Final = ["#3d71d9", "#e0752d", "#299c46", "#a352cc", "#d44a3a", "#0a9bb2", "#b8860b", "#7b8794"]
NAMED: Final = {
    "text": INK,
    "green": "#299c46",
    "yellow": "#e0b400",
    "orange": "#ff780a",
    "red": "#d44a3a",
    "dark-red": "#8f1d14",
    "blue": "#3d71d9",
    "super-light-blue": "#8ab8ff",
}
UNITS: Final[dict[str, Callable[[float], str]]] = {
    "percentunit": lambda v: f"{v:.3g}".rstrip("0").rstrip(".") if v > 100 else f"{100 * v:.3g} %",
    "Bps": format_rate,
    "bytes": lambda v: format_bytes(int(v)),
    "s": lambda v: f"{v:.3g} s" if v >= 1 or v == 0 else f"{1000 * v:.3g} ms",
    "pps": lambda v: f"{v:.4g}/s",
    "reqps": lambda v: f"{v:.3g}/s",
    "short": lambda v: f"{v:.4g}",
}


class Picture:
    """A picture of one dashboard at one time."""

    def __init__(
        self, scene: Scene, dashboard: dict[str, Any], now_s: float, variables: dict[str, str]
    ) -> None:
        self._scene = scene
        self._now_s = now_s
        self._variables = variables
        self._panels = dashboard["panels"]
        self._rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in self._panels)
        self._figure = Figure(
            figsize=(24 * INCHES_PER_COLUMN, (self._rows + 2) * INCHES_PER_ROW), dpi=DPI, facecolor=BACKGROUND
        )
        shown = ", ".join(f"{name} {value}" for name, value in variables.items() if value != ".*")
        self._figure.text(
            0.008, 1 - 0.55 / (self._rows + 2), dashboard["title"] + (f"  ({shown})" if shown else ""),
            fontsize=15, weight="bold", color=INK, va="top",
        )  # fmt: skip
        self._figure.text(
            0.992, 1 - 0.7 / (self._rows + 2), "drawn by matplotlib from the panels' queries, not by Grafana",
            fontsize=9, color=FAINT, va="top", ha="right",
        )  # fmt: skip

    def draw(self, path: Path) -> None:
        """Draw and save the picture, in the few colours that lines and text need."""
        for panel in self._panels:
            if panel["type"] == "row":
                self._heading(panel)
            else:
                getattr(self, f"_draw_{panel['type'].replace('-', '_')}")(panel, self._axes(panel))
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "raw.png"
            self._figure.savefig(raw)
            with Image.open(raw) as image:
                image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
        size = path.stat().st_size
        assert size <= BYTES_MAX, f"{path} has {size} bytes"

    # -- layout ------------------------------------------------------------------------------------------------

    def _box(self, panel: dict[str, Any]) -> tuple[float, float, float, float]:
        at = panel["gridPos"]
        rows = self._rows + 2
        return at["x"] / 24, 1 - (at["y"] + at["h"] + 2) / rows, at["w"] / 24, at["h"] / rows

    def _heading(self, panel: dict[str, Any]) -> None:
        x, y, _, height = self._box(panel)
        self._figure.text(x + 0.008, y + height / 2, panel["title"], fontsize=12, color=INK, va="center")

    def _axes(self, panel: dict[str, Any]) -> Axes:
        x, y, width, height = self._box(panel)
        gap_x, gap_y = 0.003, 0.12 / (self._rows + 2)
        frame = self._figure.add_axes(
            (x + gap_x, y + gap_y, width - 2 * gap_x, height - 2 * gap_y), facecolor=PANEL
        )
        frame.set(xticks=[], yticks=[])
        for spine in frame.spines.values():
            spine.set_color("#d5d8dc")
        row = 1 / (self._rows + 2)
        self._figure.text(
            x + 3 * gap_x,
            y + height - 0.25 * row,
            panel["title"],
            fontsize=9.5,
            weight="bold",
            color=INK,
            va="top",
        )
        inner = (x + 0.045, y + 1.9 * row, width - 0.052, height - 3.1 * row)
        if panel["type"] in ("stat", "table"):
            inner = (x + 0.008, y + 0.3 * row, width - 0.016, height - 1.4 * row)
        axes = self._figure.add_axes(inner, facecolor="none")
        if panel["type"] in ("stat", "table"):
            axes.set_axis_off()
        return axes

    # -- panels ------------------------------------------------------------------------------------------------

    def _series(self, panel: dict[str, Any]) -> list[tuple[str, list[tuple[float, float]]]]:
        found = []
        for target in panel["targets"]:
            query = substitute(target["expr"], **self._variables)
            for labels, points in self._scene.over(query, self._scene.started_s, self._now_s):
                finite = [(at, v) for at, v in points if abs(v) != float("inf")]
                found.append((self._legend(target, labels), finite))
        return sorted(((name, points) for name, points in found if points), key=lambda item: item[0])

    @staticmethod
    def _legend(target: dict[str, Any], labels: dict[str, str]) -> str:
        return re.sub(r"{{(\w+)}}", lambda m: labels.get(m[1], ""), target["legendFormat"]).strip()

    def _draw_timeseries(self, panel: dict[str, Any], axes: Axes) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        unit = UNITS[defaults["unit"]]
        custom = defaults["custom"]
        series = self._series(panel)
        if len(series) > 10:  # leave out reasons without events
            series = [(name, points) for name, points in series if any(v for _, v in points)] or series[:1]
        stacked = custom["stacking"]["mode"] == "normal"
        if stacked and series:
            times = sorted({at for _, points in series for at, _ in points})
            values = [[dict(points).get(at, 0.0) for at in times] for _, points in series]
            axes.stackplot(
                _dates(times), values, labels=[name for name, _ in series], colors=LINES, alpha=0.65
            )
        else:
            for index, (name, points) in enumerate(series):
                color = LINES[index % len(LINES)]
                marker = "." if custom["showPoints"] == "auto" else None
                axes.plot(
                    _dates([at for at, _ in points]), [v for _, v in points], label=name, color=color, lw=1.2,
                    marker=marker, markersize=3,
                )  # fmt: skip
        axes.set_xlim(*_dates([self._scene.started_s, self._now_s]))
        top = max((v for _, points in series for _, v in points), default=1.0)
        axes.set_ylim(0, None if stacked and top else top * 1.12 or 1.0)
        if "thresholdsStyle" in custom:
            for step in defaults["thresholds"]["steps"][1:]:
                if step["value"] <= axes.get_ylim()[1]:
                    axes.axhline(step["value"], color=NAMED[step["color"]], lw=0.9, ls="--")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _position: unit(v)))
        self._finish(axes, len(series))

    def _draw_state_timeline(self, panel: dict[str, Any], axes: Axes) -> None:
        [mapping] = panel["fieldConfig"]["defaults"]["mappings"]
        shown = mapping["options"]
        series = self._series(panel)
        for index, (_, points) in enumerate(series):
            for at, value in points:
                state = shown[f"{value:.0f}"]
                start, end = _dates([at, at + SCRAPE_INTERVAL_S])
                axes.barh(index, end - start, left=start, height=0.75, color=NAMED[state["color"]])
        axes.set_yticks(range(len(series)), [name for name, _ in series])
        axes.set_xlim(*_dates([self._scene.started_s, self._now_s]))
        axes.set_ylim(len(series) - 0.4, -0.6)
        for state in shown.values():
            axes.plot([], [], color=NAMED[state["color"]], lw=5, label=state["text"])
        self._finish(axes, len(shown))

    @staticmethod
    def _finish(axes: Axes, legend_count: int) -> None:
        axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
        axes.xaxis.set_major_locator(mdates.AutoDateLocator(minticks=2, maxticks=5))
        axes.tick_params(labelsize=7, colors=FAINT, length=2)
        axes.grid(visible=True, color="#e4e7eb", lw=0.6)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if legend_count:
            axes.legend(
                loc="upper center", bbox_to_anchor=(0.46, -0.13), ncols=min(legend_count, 5), fontsize=6.5,
                frameon=False, handlelength=1.0, columnspacing=1.0, labelcolor=INK,
            )  # fmt: skip

    def _draw_stat(self, panel: dict[str, Any], axes: Axes) -> None:
        defaults = panel["fieldConfig"]["defaults"]
        unit = UNITS[defaults["unit"]]
        mode = panel["options"]["textMode"]
        newest = [
            (self._legend(target, labels), value)
            for target in panel["targets"]
            for labels, value in self._scene.at(substitute(target["expr"], **self._variables), self._now_s)
        ]
        for index, (name, value) in enumerate(newest[:6]):
            x = (index + 0.5) / min(len(newest), 6)
            color = _threshold_color(defaults["thresholds"], value)
            size = 17 if len(newest) < 4 else 13
            text = name if mode == "name" else unit(value)
            room = panel["gridPos"]["w"] * 4.4 / len(newest)
            axes.text(x, 0.52, text, fontsize=min(size, size * room / max(len(text), 1)), color=color,
                      ha="center", va="center", weight="bold")  # fmt: skip
            if mode == "value_and_name" or (mode == "auto" and len(newest) > 1):
                axes.text(x, 0.1, name, fontsize=7.5, color=FAINT, ha="center", va="center")
        if not newest:
            axes.text(0.5, 0.5, "none", fontsize=11, color=FAINT, ha="center", va="center")
        axes.set(xlim=(0, 1), ylim=(0, 1))

    def _draw_table(self, panel: dict[str, Any], axes: Axes) -> None:
        organize = next(t["options"] for t in panel["transformations"] if t["id"] == "organize")
        rows: dict[tuple[str, ...], dict[str, Any]] = {}
        answers = [
            self._scene.at(substitute(target["expr"], **self._variables), self._now_s)
            for target in panel["targets"]
        ]
        named = [set(answer[0][0]) for answer in answers if answer]
        shared = set.intersection(*named) if named else set()
        for target, answer in zip(panel["targets"], answers, strict=True):
            value_name = f"Value #{target['refId']}" if len(panel["targets"]) > 1 else "Value"
            for labels, value in answer:
                line = rows.setdefault(tuple(sorted((k, v) for k, v in labels.items() if k in shared)), {})
                line.update(labels)
                line[value_name] = value
        renamed = organize["renameByName"]
        order = sorted((n for n in renamed), key=lambda n: organize["indexByName"][n])
        lines = list(rows.values())
        for step in panel["transformations"]:
            if step["id"] == "sortBy":
                [by] = step["options"]["sort"]
                source = next(name for name, heading in renamed.items() if heading == by["field"])
                lines.sort(key=lambda line: line.get(source, 0.0), reverse=by["desc"])
        overrides = {o["matcher"]["options"]: {p["id"]: p["value"] for p in o["properties"]}
                     for o in panel["fieldConfig"]["overrides"]}  # fmt: skip
        height = panel["gridPos"]["h"]
        for column, name in enumerate(order):
            x = 0.01 + column / len(order)
            heading = renamed[name]
            axes.text(x, 0.97, heading, fontsize=8, color="#1f60c4", weight="bold", va="top")
            for index, line in enumerate(lines[: int(height * 1.3)]):
                y = 0.97 - (index + 1) * 1.05 / (height - 1.2)
                if name not in line or y < 0:
                    continue
                properties = overrides.get(heading, {})
                text = (
                    UNITS[properties.get("unit", "short")](line[name])
                    if name.startswith("Value")
                    else line[name]
                )
                color = (
                    _threshold_color(properties["thresholds"], line[name])
                    if "thresholds" in properties
                    else INK
                )
                axes.text(x, y, text, fontsize=8, color=color, va="top")
        if not lines:
            axes.text(0.5, 0.5, "none", fontsize=11, color=FAINT, ha="center", va="center")
        axes.set(xlim=(0, 1), ylim=(0, 1))


def _dates(times_s: Sequence[float]) -> list[float]:
    return [float(mdates.date2num(mdates.num2date(at / 86400))) for at in times_s]


def _threshold_color(thresholds: dict[str, Any], value: float) -> str:
    reached = [step for step in thresholds["steps"] if step["value"] is None or value >= step["value"]]
    return NAMED[reached[-1]["color"]]


def main(folder: Path) -> None:
    """Run the casts and draw the dashboards."""
    folder.mkdir(exist_ok=True)
    dashboards = shipped_dashboards()
    everything = {"room": ".*", "machine": ".*"}
    with tempfile.TemporaryDirectory() as scratch, monitored_room(Path(scratch), PLAN) as scene:
        cast = everything | {"cast": scene.troubled_cast}
        for name, now_s, variables in (
            ("fleet", scene.firing_at_s, everything),
            ("cast", scene.ended_s, cast),
            ("machine", scene.ended_s, everything | {"machine": SLOW_DISK}),
        ):
            path = folder / f"{name}.png"
            Picture(scene, dashboards[name], now_s, variables).draw(path)
            print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
