"""The command ``diskcast demo``: a whole cast on this machine, alone or through a daemon."""
