"""The instances of each endpoint: starts, watches and ends their containers."""
