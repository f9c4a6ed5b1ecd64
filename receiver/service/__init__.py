"""Service mode: the agent that announces its machine to a daemon and waits for casts."""
