"""Service mode: check in with a daemon, and receive the casts that it assigns."""
