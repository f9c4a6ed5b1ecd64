"""Commands that are clients of the daemon's API."""
