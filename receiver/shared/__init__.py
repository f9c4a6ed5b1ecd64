"""Helpers that every room of the receiver may use, and that use none of them."""
