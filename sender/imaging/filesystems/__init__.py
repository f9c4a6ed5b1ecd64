"""Free ranges of each filesystem: read from its metadata by its own tool, by partclone or by diskcast."""
