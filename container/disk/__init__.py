"""Temporary files for bodies, answers and tables that are too large for memory."""
