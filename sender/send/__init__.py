"""The command ``diskcast send``."""
