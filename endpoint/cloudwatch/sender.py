"""Attempts to send something to CloudWatch, and what the log says of those that fail."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.backend.clients import is_refusal

_LOG = logging.getLogger(__name__)


class Sender:
    """Sends one kind of data, and logs the beginning of an outage once."""

    def __init__(self, service: str) -> None:
        """`service` names the recipient in the log."""
        self.is_failing = False
        self._service = service

    async def send(self, call: Callable[[], None], what: str) -> bool:
        """Run `call` in a thread; return False if another attempt may succeed. Data that is refused is dropped."""
        try:
            await asyncio.to_thread(call)
        except Exception as error:
            if is_refusal(error):
                _LOG.warning("%s refuses %s: %s", self._service, what, error)
                return True
            if not self.is_failing:
                is_known = isinstance(error, BotoCoreError | ClientError)
                _LOG.warning("%s does not take %s, which wait: %s", self._service, what, error, exc_info=not is_known)
            self.is_failing = True
            return False
        self.is_failing = False
        return True
