"""Network side of a reception: interface, sockets, discovery, and the sender's control API."""
