"""Edited images: partitions are copied sparsely, edited by tools in the sandbox, and stored as a new image."""
