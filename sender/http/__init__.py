"""HTTP for the daemon and for casts: uvicorn behind limits on connections, request heads, bodies and time."""
