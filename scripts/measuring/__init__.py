"""Measures of the code itself: its figures, and the way of a request through its files. Works on any checkout."""
