"""The daemon's REST API under ``/api/v1``, with its live events and metrics."""
