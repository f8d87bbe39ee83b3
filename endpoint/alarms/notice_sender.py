"""Publishes the alarms' notifications: each at least once, in order, however long the backend is down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from botocore.exceptions import BotoCoreError, ClientError

from endpoint.alarms.history import acted
from endpoint.alarms.store import AlarmStore
from endpoint.backend.clients import Clients, is_refusal
from endpoint.backoff import Backoff

_LOG = logging.getLogger(__name__)


class NoticeSender:
    """Empties the table of notices. A topic that refuses one fails the alarm's action, and that is in its history."""

    def __init__(self, store: AlarmStore, backend: Clients, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._backend = backend
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Publish soon: there is a new notice."""
        self._woken.set()

    async def run(self) -> None:
        """Publish until cancelled; what is being published then is seen to its end. Never raises."""
        backoff = Backoff()
        while True:
            self._woken.clear()
            try:
                is_left = await asyncio.shield(asyncio.create_task(self.send_first()))
                backoff.reset()
            except Exception as error:
                if backoff.is_first:
                    is_known = isinstance(error, BotoCoreError | ClientError)
                    _LOG.warning("Notifications of alarms wait: %s", error, exc_info=not is_known)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), backoff.next_s())
                continue
            if not is_left:
                await self._woken.wait()

    async def send_first(self) -> bool:
        """Publish the oldest notice, and return whether there was one. Raises what may pass."""
        if (first := await self._store.first_notice()) is None:
            return False
        seq, notice = first
        failure = None
        try:
            await asyncio.to_thread(
                lambda: self._backend.client("sns").publish(
                    TopicArn=notice.topic, Subject=notice.subject, Message=notice.message
                )
            )
        except (BotoCoreError, ClientError) as error:
            if not is_refusal(error):
                raise
            _LOG.warning("A notification of alarm %s is dropped, %s refuses it: %s", notice.alarm, notice.topic, error)
            failure = str(error)
        message = None if failure else notice.message
        item = acted(notice.alarm, notice.topic, at=self._clock(), state_at=notice.at, error=failure, message=message)
        await self._store.end_notice(seq, item)
        return True
