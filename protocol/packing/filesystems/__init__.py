"""Filesystems of a source: their superblocks, and their free ranges, which tools or diskcast read from the metadata."""
