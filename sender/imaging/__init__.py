"""Images: the commands ``pack``, ``inspect``, ``verify`` and ``unpack``, and the image file."""
