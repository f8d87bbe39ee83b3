"""Logs, metrics and the progress of requests."""
