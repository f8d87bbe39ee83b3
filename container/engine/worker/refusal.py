"""The refusal of a model."""

from __future__ import annotations


class ModelRefused(Exception):
    """This model, or a setting for it, can't be served. The message says what to do."""
