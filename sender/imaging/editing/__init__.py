"""Edited images: partitions are copied as far as needed, edited by tools in the sandbox, and stored again."""
