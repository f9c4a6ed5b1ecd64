"""Reception of a cast: from its discovery on the network to the report of its end."""
