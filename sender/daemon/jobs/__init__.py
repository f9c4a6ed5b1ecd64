"""Casts that run in this daemon: their registry, sessions, records and events."""
