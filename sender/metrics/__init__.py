"""Prometheus metrics of casts, receivers, the fleet and the daemon."""
