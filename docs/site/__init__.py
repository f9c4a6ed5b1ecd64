"""The documentation as a searchable site that works without a network."""
