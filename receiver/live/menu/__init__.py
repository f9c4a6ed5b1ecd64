"""The menu for one machine: a technician at its console chooses an image and a disk, and images this machine alone."""
