"""Seeded faults against `./serve`, one scenario per file; every answer is compared with an undisturbed server's."""
