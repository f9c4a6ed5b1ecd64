"""The daemon's images: a watched folder, remote copies, and the cache in between."""
