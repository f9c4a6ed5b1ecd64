"""Plots of simulated casts as SVG files, for tuning and for the documentation."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from protocol.constants import DATA_HEADER_BYTES
from tests.simulation.links import BYTES_PER_S_OF_MBIT, UNLIMITED_BYTES_PER_S, WIRE_OVERHEAD_BYTES
from tests.simulation.traces import Trace, windowed_rate

# The same run draws the same file, byte by byte.
mpl.rcParams.update(
    {
        "svg.hashsalt": "diskcast",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
)

_CAUSE_COLOURS = {
    "network": "#4477aa",
    "socket": "#ee6677",
    "decode": "#ccbb44",
    "disk": "#aa3377",
    "source": "#66ccee",
    "sender": "#228833",
    "ceiling": "#222222",
    "none": "#dddddd",
}
_PORTS_DRAWN_MAX = 8


def draw_rates(trace: Trace, title: str, path: Path) -> None:
    """Draw rate and limit, queues, losses and bottleneck of one cast over time."""
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    heights = {"height_ratios": [3, 1.3, 1.3, 0.25]}
    rate_axes, queue_axes, loss_axes, bottleneck_axes = figure.subplots(
        4, 1, sharex=True, gridspec_kw=heights
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    _draw_rate(rate_axes, trace)
    _draw_queue(queue_axes, trace)
    _draw_loss(loss_axes, trace)
    _draw_bottleneck(bottleneck_axes, trace)
    bottleneck_axes.set_xlabel("seconds since image data began")
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def draw_outline(trace: Trace, title: str, path: Path) -> None:
    """Draw only the rate of one cast against its limit, small enough to stand beside another."""
    figure = Figure(figsize=(4.6, 2.2), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=8, loc="left")
    _draw_rate(axes, trace)
    axes.get_legend().remove()
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _drawn(trace: Trace) -> list[int]:
    """Return the ports to draw: every different model once, the first eight."""
    models = trace.model.receivers
    different = [index for index, model in enumerate(models) if model not in models[:index]]
    return different[:_PORTS_DRAWN_MAX]


def _draw_rate(axes: Axes, trace: Trace) -> None:
    samples = trace.samples
    times = samples["time"]
    for index in _drawn(trace):
        port = trace.ports[:, index]
        limit = port["limit"] / BYTES_PER_S_OF_MBIT
        if port["limit"].max() < UNLIMITED_BYTES_PER_S:
            axes.plot(
                times, limit, color="black", linewidth=1, linestyle="--", label="link" if index == 0 else None
            )
        delivered = windowed_rate(times, port["arrived"]) / BYTES_PER_S_OF_MBIT
        axes.plot(times, delivered, linewidth=1, label=f"arrives at receiver {index}")
    frame_bytes = DATA_HEADER_BYTES + trace.model.symbol_bytes
    on_wire = (frame_bytes + WIRE_OVERHEAD_BYTES) / frame_bytes
    axes.plot(
        times, samples["rate"] * on_wire / BYTES_PER_S_OF_MBIT, color="#cc3311", linewidth=1.2, label="sent"
    )
    if trace.cast.tcp_flows:
        tcp = windowed_rate(times, samples["tcp"]) / BYTES_PER_S_OF_MBIT
        axes.plot(times, tcp, color="#009988", linewidth=1, label="TCP flow")
    axes.set_ylabel("Mbit/s")
    axes.set_ylim(0, _top(trace, on_wire))
    axes.legend(loc="upper right", ncols=4)


def _top(trace: Trace, on_wire: float) -> float:
    """Return the top of the axis: above the limit and most of the rate; a short overshoot may leave the picture."""
    limits = trace.ports["limit"]
    limit = limits[limits < UNLIMITED_BYTES_PER_S]
    rate = float(np.percentile(trace.samples["rate"] * on_wire, 98))
    return 1.25 * max(float(limit.max()) if limit.size else 0.0, rate) / BYTES_PER_S_OF_MBIT


def _draw_queue(axes: Axes, trace: Trace) -> None:
    for index in _drawn(trace):
        axes.plot(trace.samples["time"], trace.ports[:, index]["queue"] / 1e3, linewidth=0.8)
    axes.set_ylabel("port's queue, KB")
    fills = axes.twinx()
    for index in _drawn(trace):
        fills.plot(trace.samples["time"], trace.ports[:, index]["fill"] * 100, linewidth=0.8, linestyle=":")
    fills.set_ylim(0, 105)
    fills.set_ylabel("buffers, % (dotted)")
    fills.grid(visible=False)


def _draw_loss(axes: Axes, trace: Trace) -> None:
    times = trace.samples["time"]
    for index in _drawn(trace):
        port = trace.ports[:, index]
        offered = windowed_rate(times, port["offered"])
        axes.plot(
            times, _percent(windowed_rate(times, port["dropped"] + port["lost"]), offered), linewidth=0.8
        )
    axes.plot(
        times, trace.samples["parity"] * 100, color="#888888", linewidth=1, linestyle="--", label="parity"
    )
    axes.set_ylabel("lost, %")
    axes.legend(loc="upper right")


def _percent(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    percent: NDArray[np.float64] = 100 * part / np.maximum(whole, 1e-9)
    return percent


def _draw_bottleneck(axes: Axes, trace: Trace) -> None:
    samples = trace.samples
    names = [
        cause if who < 0 else f"{cause}, {who}"
        for cause, who in zip(samples["cause"].tolist(), samples["who"].tolist(), strict=True)
    ]
    seen: set[str] = set()
    start = 0
    for stop in range(1, len(names) + 1):
        if stop < len(names) and names[stop] == names[start]:
            continue
        until = samples["time"][min(stop, len(names) - 1)]
        cause = str(samples["cause"][start])
        label = None if cause in seen else cause
        seen.add(cause)
        axes.axvspan(
            samples["time"][start],
            until,
            color=_CAUSE_COLOURS.get(cause, "#dddddd"),
            label=label,
            linewidth=0,
        )
        start = stop
    axes.set_yticks([])
    axes.set_ylabel("limited by", rotation=0, ha="right", va="center")
    axes.grid(visible=False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -1.6), ncols=8)
