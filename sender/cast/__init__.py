"""One cast: its settings, network, session, transmission and reporting."""
