"""Generalised images: everything that must differ between clones of a system is removed."""
