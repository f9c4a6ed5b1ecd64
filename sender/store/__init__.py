"""Records of the daemon: rooms, machines, casts, history, schedules, tokens, audit log and images."""
