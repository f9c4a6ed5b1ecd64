"""The command ``diskcast doctor``: checks of the sender, the daemon and its database."""
