"""A target's disk: what is there, writing it, reading back what is really on it."""
