"""The commands that are clients of the daemon's API."""
