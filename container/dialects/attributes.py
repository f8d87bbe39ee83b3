"""The header that SageMaker passes on to the container: `max_new_tokens=64;job=my-job`.

SageMaker allows 1,024 visible ASCII characters in any form. Teams put their own tokens there, so whatever isn't a pair,
and every key that nobody asks for, passes without a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from container.errors import InvalidRequest

HEADER = "X-Amzn-SageMaker-Custom-Attributes"
PREFIX = f"{HEADER}: "
"""What comes before a key in an error's `param`."""
LONGEST_TIMEOUT_S = 3600
"""SageMaker's own limit of `InvocationTimeoutSeconds`."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """The header's `key=value` pairs, in order. Space around a key or a value doesn't count."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, header: str | None) -> Attributes:
        parts = (part.partition("=") for part in (header or "").split(";"))
        return cls(tuple((key.strip(), value.strip()) for key, equals, value in parts if equals))

    def all(self, key: str) -> list[str]:
        return [value for name, value in self.pairs if name == key]

    def one(self, key: str) -> str | None:
        """The key's value, if it is there. InvalidRequest if it is there more than once."""
        values = self.all(key)
        if len(values) > 1:
            raise InvalidRequest(f"{PREFIX}{key} is given {len(values)} times; give it once", param=PREFIX + key)
        return values[0] if values else None

    def job(self) -> str | None:
        """The name under which the request can be sent again, to go on where it was. InvalidRequest if malformed."""
        given = self.one("job")
        if given is None or re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given):
            return given
        message = f"{PREFIX}job must be a name of 1 to 128 letters, digits, dots, underscores and hyphens"
        raise InvalidRequest(message, param=f"{PREFIX}job")

    def timeout_s(self) -> float | None:
        """When the caller gives up, in seconds from the request's arrival, if it says. InvalidRequest if malformed."""
        given = self.one("timeout")
        if given is None:
            return None
        if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,6})?", given) and 1 <= (value := float(given)) <= LONGEST_TIMEOUT_S:
            return value
        message = f"{PREFIX}timeout must be a number of seconds from 1 to {LONGEST_TIMEOUT_S}, such as timeout=1800"
        raise InvalidRequest(message, param=f"{PREFIX}timeout")
