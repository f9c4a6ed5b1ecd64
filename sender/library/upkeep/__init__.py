"""Upkeep of the library by operators: uploads and pruning."""
