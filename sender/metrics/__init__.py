"""What Prometheus is told of casts, receivers, the fleet and the daemon."""
