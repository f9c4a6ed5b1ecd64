"""Sources of the Grafana dashboards; docs/generate.py writes them to deploy/grafana/dashboards."""

from __future__ import annotations

from docs.dashboards.cast import cast
from docs.dashboards.fleet import fleet
from docs.dashboards.machine import machine

DASHBOARDS = {"fleet": fleet, "cast": cast, "machine": machine}
"""Functions that return the dashboards, by file name."""
