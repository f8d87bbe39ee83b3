"""The soaks of scripts/soak.py: requests and bad documents, hostile clients, traffic, and monitored processes."""
