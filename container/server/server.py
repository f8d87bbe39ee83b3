"""The server process: its life from the first request to the exit status. Imports no torch."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from container.server.bootstrap import Backend, open_journal
from container.server.exchange import Exchanges
from container.server.state import ServerState
from container.settings import BadSetting, Settings
from container.startup.gpu_driver import NO_GPU, Decision
from container.startup.model_source import local_directory

logger = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 19.0
"""Seconds from SIGTERM until open work is given up. SageMaker kills 30 s after it: journal and answers need their
share."""
SAVE_TIMEOUT_S = 3.0
"""Seconds for what was generated to reach the journal."""
ANSWERS_TIMEOUT_S = 2.0
"""Seconds for the answers of given-up work to reach the wire."""
LAST_SAVE_TIMEOUT_S = 1.0
"""Seconds for what was still open when the answers were given to reach the journal."""


class Server:
    """Owns the exchanges and what runs behind them, and decides when all of it ends."""

    def __init__(self, settings: Settings, model: str, driver: Decision = NO_GPU) -> None:
        """`model` is a directory or a hub id."""
        self.state = ServerState(settings)
        self.exchanges = Exchanges()
        self._model = model
        self._driver = driver
        self._backend: Backend | None = None
        self._is_draining = False
        self._is_ending = asyncio.Event()
        self._is_in_hurry = asyncio.Event()
        self.state.metrics.requests_running.set_function(lambda: len(self.exchanges))

    @property
    def child_pids(self) -> set[int]:
        """Children whose exit status is waited for."""
        return set() if self._backend is None else self._backend.child_pids

    async def load(self) -> None:
        """Fetch the model, then load tokenizer and engine side by side."""
        settings = self.state.settings
        try:
            store = await open_journal(settings)
        except BadSetting as error:
            self.fail(str(error))
            return
        try:
            directory = await asyncio.to_thread(local_directory, self._model, settings)
            self._backend = Backend(self.state, store, directory, self._driver, self.fail)
            await self._backend.load_model()
        except (BadSetting, OSError, ValueError) as error:
            self.fail(f"the model can't be loaded: {error}")

    def fail(self, reason: str) -> None:
        """Answer what is open and exit with status 1: nothing here can be put right."""
        if self.state.failure is None:
            self.state.fail(reason)
            logger.error("the server failed: %s", reason, extra={"action": "failed"})
            self._is_ending.set()
            self._is_in_hurry.set()

    def fail_with(self, task: asyncio.Task[None]) -> None:
        """Fail if `task`, which the server can't do without, has died."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(f"{task.get_name()}: {type(error).__name__}: {error}")

    def drain(self) -> None:
        """Take nothing new, and finish what can be finished in time. The second call ends it at once."""
        if self._is_draining:
            self._is_in_hurry.set()
            return
        self._is_draining = True
        self.state.drain()
        logger.info("draining", extra={"action": "drain", "open_requests": len(self.exchanges)})
        self._is_ending.set()

    async def wait_for_end(self) -> int:
        """Return the exit status, once the server is to end and every open request has its answer."""
        await self._is_ending.wait()
        ends = [asyncio.create_task(self.exchanges.wait_until_ended()), asyncio.create_task(self._is_in_hurry.wait())]
        await asyncio.wait(ends, timeout=DRAIN_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if self._backend is not None:
            await self._backend.save_jobs(SAVE_TIMEOUT_S)
        self.exchanges.abort_all()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.exchanges.wait_until_ended(), ANSWERS_TIMEOUT_S)
        return 0 if self.state.failure is None else 1

    async def stop(self) -> None:
        if self._backend is not None:
            await self._backend.stop(save_timeout_s=LAST_SAVE_TIMEOUT_S)
