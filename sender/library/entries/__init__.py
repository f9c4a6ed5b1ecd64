"""Entries of the library's images: numbers, notes, contents, and the pruning policy."""
