"""Boots over the network: the system that each machine boots, and the machines that are booting."""
