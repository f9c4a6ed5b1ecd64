"""Captures: images that agents make of their disks, and send to this daemon."""
