"""The session of a cast, shared between threads, and the ports through which receivers reach it."""
