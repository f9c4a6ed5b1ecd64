"""``diskcast netboot doctor``: watch machines boot, and name the cause when they don't."""
