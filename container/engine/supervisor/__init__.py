"""The server's side of the engine process: starts it, feeds it and replaces it. Imports no torch."""
