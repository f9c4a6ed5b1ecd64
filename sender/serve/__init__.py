"""``diskcast serve``: the program around the daemon. It builds the parts, starts and stops them."""
