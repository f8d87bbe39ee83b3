"""Tokens of pages: what the next page needs to know, in a text that callers give back unchanged."""

from __future__ import annotations

import base64
import json
from typing import Any


def make_token(*parts: Any) -> str:
    """Return the token of values that JSON has."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


def read_token(token: str) -> list[Any] | None:
    """Return what a token was made of, or None if `make_token` didn't make it. The caller checks types."""
    try:
        parts = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, RecursionError):
        return None
    return parts if isinstance(parts, list) else None
