"""The database underneath: connections, tables, migrations and the translation of errors."""
