"""Disk structures as bytes: partition tables, filesystem signatures, layouts."""
