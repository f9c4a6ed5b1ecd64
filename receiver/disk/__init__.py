"""A target's disk: inventory, writing, read-back, verification and commit."""
