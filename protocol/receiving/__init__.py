"""The receiver's half of the protocol: session, block assembly, feedback."""
