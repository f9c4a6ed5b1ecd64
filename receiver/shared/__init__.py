"""Helpers for every part of the receiver; they import none of those parts."""
