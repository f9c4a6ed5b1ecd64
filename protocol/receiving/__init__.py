"""The receiving half of the protocol: session, block assembly, feedback."""
