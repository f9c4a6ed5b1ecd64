"""The daemon: casts that are leased from the database, and their operators, agents and subscribers."""
