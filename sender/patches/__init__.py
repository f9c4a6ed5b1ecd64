"""Machine patches: a room's template and its machines become seeds, and seeds become patches of an image."""
