"""The images that this machine accepts: trusted keys, version floors, and the decision before a target is opened."""
