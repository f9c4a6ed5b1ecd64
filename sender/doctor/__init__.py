"""``diskcast doctor``: trying out on this machine what a sender, a daemon and its database need."""
