"""Grafana's dashboards, from which docs/generate.py writes deploy/grafana/dashboards."""

from __future__ import annotations

from docs.dashboards.cast import cast
from docs.dashboards.fleet import fleet
from docs.dashboards.machine import machine

DASHBOARDS = {"fleet": fleet, "cast": cast, "machine": machine}
"""By the file's name."""
