"""The sender's own identity: its certificate, its secret key for join codes, and the directories that hold them."""
