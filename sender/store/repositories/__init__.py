"""Repositories: reading and changing the store's records, one transaction per call."""
