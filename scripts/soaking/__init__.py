"""What scripts/soak.py is made of: questions and bad documents, hostile transport, the traffic of all, the watch."""
