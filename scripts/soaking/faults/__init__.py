"""Seeded faults against `./serve`, a scenario a file; every answer is held to the undisturbed run's."""
