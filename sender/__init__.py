"""The operator's program ``diskcast``: packs images, casts them, answers the control API (asyncio)."""
