"""Machine patches of the daemon: variables, previews, and the patches of casts."""
