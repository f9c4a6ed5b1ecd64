"""``diskcast netboot``: bare machines boot the agent from the network, or from a USB stick."""
