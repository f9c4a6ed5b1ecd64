"""Generalised images and virt-sysprep: ``make generalise-vm``."""
