"""The daemon's REST API under ``/api/v1``, its live events and its metrics."""
