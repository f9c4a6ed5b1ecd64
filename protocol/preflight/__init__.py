"""Preflight: does an image fit a machine? Pure rules, shared by the daemon and the menu of the live system."""
