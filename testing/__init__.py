"""What tests and scripts share: servers, models, emulators and the containers that misbehave on purpose."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""
