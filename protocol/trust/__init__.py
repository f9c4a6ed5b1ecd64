"""Trust: signed image statements, the keys that a machine trusts, certificate pins."""
