"""``diskcast demo``: a whole cast on this machine, by hand or through a daemon."""
