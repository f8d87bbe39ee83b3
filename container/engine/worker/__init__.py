"""The engine process: loads the model and generates token ids in continuous batches."""
