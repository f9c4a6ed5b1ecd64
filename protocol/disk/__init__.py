"""Structures of disks as bytes: partition tables, filesystem signatures, layouts."""
