"""What the daemon remembers: rooms, machines, casts, history, tokens, in SQLite or PostgreSQL."""
