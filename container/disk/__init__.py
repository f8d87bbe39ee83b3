"""What is too large for memory: bodies, answers and tables in temporary files."""
