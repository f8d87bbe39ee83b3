"""The instances of each endpoint: their containers are started, watched and ended."""
