"""Child processes: what both sides of one share, and what the operating system asks of their parent."""
