"""Messages of the control API: join, completion and check-in."""
