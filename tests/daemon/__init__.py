"""The daemon: its leases, its casts, what it shows."""
