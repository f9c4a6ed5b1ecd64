"""The network side of a cast: interfaces, sockets and the fastest way to send datagrams."""
