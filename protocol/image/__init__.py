"""The image format: manifest, block codec, file records, metadata."""
