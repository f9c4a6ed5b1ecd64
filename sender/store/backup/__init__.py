"""Protection of a SQLite file: change journal, backups, restore and integrity check."""
