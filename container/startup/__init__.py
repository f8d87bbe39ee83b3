"""What is found out before the engine starts: the model's files and the GPU's driver."""
