"""Patched disks with a real Debian, in virtual machines."""
