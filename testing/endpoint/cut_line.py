"""The embedded backend for tests of what is sent to it, and a line to it that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from endpoint.backend.backend import Backend
from endpoint.settings import Settings
from testing.server import free_port

REGION, ACCOUNT = "eu-west-1", "111122223333"


@contextlib.contextmanager
def a_backend(data_dir: Path) -> Iterator[Backend]:
    backend = Backend(Settings(data_dir=data_dir, region=REGION, account=ACCOUNT))
    asyncio.run(backend.start())
    try:
        yield backend
    finally:
        asyncio.run(backend.stop())
        backend.close()


class Line:
    """Clients of the backend; while it is cut, they talk to a port without a listener."""

    def __init__(self, backend: Any, is_cut: bool = False) -> None:
        self.is_cut = is_cut
        self.attempts = 0
        """Clients asked for while it was cut."""
        self._backend = backend
        self._nowhere = f"http://127.0.0.1:{free_port()}"

    def client(self, service: str) -> Any:
        if not self.is_cut:
            return self._backend.client(service)
        self.attempts += 1
        session = boto3.Session(aws_access_key_id=ACCOUNT, aws_secret_access_key="none", region_name=REGION)
        config = Config(retries={"total_max_attempts": 1})
        return session.client(service, endpoint_url=self._nowhere, config=config)


async def until(question: Callable[[], Any]) -> Any:
    """Ask in a thread until the answer is true, and return it."""
    async with asyncio.timeout(60):
        while not (answer := await asyncio.to_thread(question)):
            await asyncio.sleep(0.01)
        return answer


@contextlib.asynccontextmanager
async def running(run: Callable[[], Awaitable[None]]) -> Any:
    """Run it as a task, and cancel that at the end, as the platform does."""
    task = asyncio.ensure_future(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
