"""Checks and measures of the engine on a GPU, each of which runs in a process of its own with a time limit."""
