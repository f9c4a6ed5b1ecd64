"""Captures: this machine's disk becomes an image on the daemon."""
