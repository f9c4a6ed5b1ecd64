"""The sending half of the protocol: session, demand, pacing and the datagrams to the group."""
