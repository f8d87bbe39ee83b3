"""Helpers that tests and scripts share: servers, models, emulators, and containers that misbehave on purpose."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""Root folder of the checkout."""
