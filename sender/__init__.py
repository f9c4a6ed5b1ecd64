"""The operator's program ``diskcast``: packing, casting, the daemon and its clients (asyncio)."""
