"""Disks into images: what ``pack``, ``inspect``, ``verify`` and ``unpack`` do, and the image file they share."""
