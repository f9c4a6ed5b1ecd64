"""The agent's doctor: checks of this machine before it receives a cast."""
