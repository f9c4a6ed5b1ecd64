"""One cast: from an image to the wire and back, and what the operator sees of it."""
