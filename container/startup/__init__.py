"""Checks before the engine starts: the model's files and the GPU's driver."""
