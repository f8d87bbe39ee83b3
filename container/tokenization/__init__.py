"""The way of a prompt to token ids, and of token ids back to text."""
