"""The checks of every request before its endpoint, and the responses to refused ones."""
