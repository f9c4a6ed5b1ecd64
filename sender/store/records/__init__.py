"""Plain records: what the store keeps, the API serves (field for field, as JSON) and the command line prints.

Times are aware ``datetime`` in UTC, ids are text, sizes are bytes.
"""
