"""HTTP, and the life of the server process from its first signal handler to its exit status."""
