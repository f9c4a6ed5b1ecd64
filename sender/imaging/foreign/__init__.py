"""Images of other programs as sources of ``pack``."""
