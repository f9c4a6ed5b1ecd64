"""Attacks over the network or on the machine, carried out against the real programs, by number of the threat model."""
