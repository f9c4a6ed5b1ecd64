"""Status of a reception, and its presentation: progress lines, JSON lines, metrics."""
