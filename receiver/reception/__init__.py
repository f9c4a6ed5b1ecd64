"""Receiving a cast: from finding it on the network to the report of its end."""
