"""The edge process: its life from the first signal handler to the exit status, and what `/ping` says meanwhile.

Owns the engine's client, the queue before it and the open exchanges. Imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, cast

import msgspec
import uvicorn

from container.engine.messages import EngineConfig, EngineInfo, Step
from container.engine.sequence import EngineError
from container.engine.supervisor.admission import Admission
from container.engine.supervisor.engine_client import EngineClient
from container.errors import Unavailable
from container.invocations.invocation import Service
from container.invocations.request_digest import model_identity
from container.jobs.attachment import Attachment
from container.jobs.registry import JobRegistry
from container.journal.stores.store import open_store
from container.processes.heap import share_arenas, start_trimmer
from container.processes.reaper import reap_zombies
from container.reader.client import ReaderLimits, Readers
from container.reader.messages import ReaderConfig
from container.server.connection import Connection
from container.server.exchange import Exchange
from container.settings import BadSetting, Settings
from container.startup.gpu_driver import NO_GPU, Decision
from container.startup.model_source import local_directory
from container.telemetry.metrics import Metrics
from container.telemetry.progress import Progress
from container.tokenization.model_defaults import Defaults
from container.tokenization.preparer import Preparer
from container.tokenization.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Status = Literal["starting", "ready", "recovering", "draining", "failed"]

DRAIN_S = 19.0
"""From SIGTERM until open work is given up. SageMaker kills 30 s after it: journal and answers need their share."""
SAVE_S = 3.0
"""For what was generated to reach the journal."""
LAST_SAVE_S = 1.0
"""For what was still open when the answers were given."""
ANSWERS_S = 2.0
"""For the answers of given-up work to reach the wire."""
DRAIN_PATIENCE_S = 5.0
"""For a client that keeps the draining waiting, where LONGHAUL_CLIENT_TIMEOUT_S is longer."""
KEEP_ALIVE_S = 180
"""Longer than pooled clients keep a connection: they would lose a race with a shorter one."""
_WORKERS = 2
_SAGEMAKERS = ("SAGEMAKER_SAFE_PORT_RANGE", "SAGEMAKER_BIND_TO_PORT")
"""Variables that tell of SageMaker's own containers."""
_REASONS: dict[Status, str] = {
    "starting": "the model is being loaded",
    "recovering": "the engine died and is being started again",
    "draining": "the server is shutting down",
}


class Edge:
    """Owns everything that lives as long as the process."""

    def __init__(self, settings: Settings, model: str, driver: Decision = NO_GPU) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.service: Service | None = None
        self.exchanges: set[Exchange] = set()
        self.workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="text")
        self.writers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="answer")
        self._reader_limits = ReaderLimits()
        self._model = model
        self._driver = driver
        self._directory = ""
        self._files_digest = ""
        self._jobs: JobRegistry | None = None
        self._progress: Progress | None = None
        self._engine: EngineClient | None = None
        self._admission: Admission | None = None
        self._tokenizer: Tokenizer | None = None
        self._defaults = Defaults()
        self._draining = False
        self._failure: str | None = None
        self._end = asyncio.Event()
        self._hurry = asyncio.Event()

    @property
    def status(self) -> Status:
        if self._failure is not None:
            return "failed"
        if self._draining:
            return "draining"
        if self.service is None:
            return "starting"
        return "ready" if self._engine is not None and self._engine.state == "ready" else "recovering"

    @property
    def reason(self) -> str | None:
        """Why `/ping` says what it says; nothing when all is well."""
        return self._failure or _REASONS.get(self.status)

    @property
    def owned_pids(self) -> set[int]:
        """Children whose exit status somebody here waits for."""
        engine = None if self._engine is None else self._engine.pid
        return self._reader_limits.pids | ({engine} if engine is not None else set())

    @property
    def takes_work(self) -> bool:
        return self.status in ("ready", "recovering")

    @property
    def client_patience_s(self) -> float:
        """How long a client may keep us waiting for its next byte, or for taking ours."""
        limit = self.settings.client_timeout_s
        return min(limit, DRAIN_PATIENCE_S) if self._draining else limit

    def service_or_unavailable(self) -> Service:
        """What a new request works with. Raises Unavailable while there is none."""
        if self.service is None or not self.takes_work:
            status = self.status
            code = "shutting_down" if status == "draining" else status
            raise Unavailable(f"the server is {status}; try again when /ping answers 200", code=code)
        return self.service

    def release(self, attachment: Attachment, *, is_complete: bool) -> None:
        assert self._jobs is not None, "it is a job's"
        self._jobs.release(attachment, is_complete=is_complete)

    async def load(self) -> None:
        """Fetch the model, then load tokenizer and engine side by side."""
        try:
            await self._open_journal()
        except BadSetting as error:
            self.fail(str(error))
            return
        try:
            directory = self._directory = await asyncio.to_thread(local_directory, self._model, self.settings)
            self._start_engine(directory)
            self._files_digest = await asyncio.to_thread(model_identity, directory)
            self._defaults = await asyncio.to_thread(Defaults.load, directory)
            self._tokenizer = await asyncio.to_thread(self._load_tokenizer, directory)
        except (BadSetting, OSError, ValueError) as error:
            self.fail(f"the model can't be loaded: {error}")
            return
        for warning in self._defaults.warnings:
            logger.warning(warning)
        self._engine_changed()

    def _start_engine(self, directory: str) -> None:
        self._engine = EngineClient(
            _engine_config(self.settings, directory, needs_gpu=self._driver.needs_gpu),
            stall_timeout_s=self.settings.stall_timeout_s,
            library_path=self._driver.library_path,
            on_change=self._engine_changed,
            on_step=self._engine_stepped,
            on_restart=self.metrics.engine_restarts.inc,
            on_resubmit=self.metrics.resubmitted.inc,
        )
        self._admission = Admission(self._engine)
        self._watch_gauges(self._engine, self._admission)
        self._engine.start()

    async def _open_journal(self) -> None:
        """Raises BadSetting where it can't be one, whatever becomes of disks and networks."""
        settings = self.settings
        try:
            store = await asyncio.to_thread(
                partial(open_store, settings.checkpoint_uri, kms_key=settings.checkpoint_kms_key)
            )
        except ValueError as error:
            raise BadSetting(f"LONGHAUL_CHECKPOINT_URI is {settings.checkpoint_uri!r}: {error}") from None
        ends_with_container = store.is_local and any(name in os.environ for name in _SAGEMAKERS)
        if ends_with_container:
            logger.warning(
                "the journal is a directory of this container and ends with it; give an s3:// address as"
                " LONGHAUL_CHECKPOINT_URI to go on after the container's death",
                extra={"action": "journal_is_local"},
            )
        self._jobs = JobRegistry(
            store,
            self.metrics,
            interval_s=settings.checkpoint_interval_s,
            lifetime_s=settings.checkpoint_days * 86_400,
            max_bytes=settings.checkpoint_max_bytes,
            spool_dir=settings.spool_dir,
            ends_with_container=ends_with_container,
        )
        self._jobs.start()
        self._progress = Progress.of(settings, self.metrics, self._jobs.write_beside)
        self._progress.start()

    def _load_tokenizer(self, directory: str) -> Tokenizer:
        return Tokenizer.load(
            directory, trust_remote_code=self.settings.trust_remote_code, vocab_size=self._defaults.vocab_size
        )

    def fail(self, reason: str) -> None:
        """Nothing here can be put right: answer what is open, and exit with status 1."""
        if self._failure is None:
            self._failure = reason
            logger.error("the server failed: %s", reason, extra={"action": "failed"})
            self._end.set()
            self._hurry.set()

    def fail_with(self, task: asyncio.Task[None]) -> None:
        """For a task that the server can't do without: whatever it died of, nobody may go on waiting for it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(f"{task.get_name()}: {type(error).__name__}: {error}")

    def drain(self) -> None:
        """Take nothing new, finish what can be finished in time."""
        if not self._draining:
            self._draining = True
            logger.info("draining", extra={"action": "drain", "open_requests": len(self.exchanges)})
            self._end.set()
        else:  # asked twice: now
            self._hurry.set()

    async def wait_for_end(self) -> int:
        """The exit status, once the server is to end and every open request has its answer."""
        await self._end.wait()
        self.metrics.ready.set(0)
        await self._drained()
        await self._save_jobs(SAVE_S)
        self._abort_exchanges()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exchanges_ended(), ANSWERS_S)
        return 0 if self._failure is None else 1

    async def stop(self) -> None:
        ends = [self._save_jobs(LAST_SAVE_S)]
        if self._engine is not None:
            ends.append(self._engine.stop())
        await asyncio.gather(*ends)
        if self._progress is not None:
            await self._progress.stop()
        if self._jobs is not None:
            self._jobs.close()
        self.workers.shutdown(wait=False, cancel_futures=True)
        self.writers.shutdown(wait=False, cancel_futures=True)

    async def _save_jobs(self, within_s: float) -> None:
        """Where somebody still waits, nothing is generated any more: what there is, is what can go on later."""
        if self._jobs is not None:
            self._jobs.freeze()
            # Not cancelled at its end: a thread may be writing.
            await asyncio.wait([asyncio.create_task(self._jobs.save_all())], timeout=within_s)

    async def _drained(self) -> None:
        """Until all open work is done, but not past its time."""
        ways = [asyncio.create_task(self._exchanges_ended()), asyncio.create_task(self._hurry.wait())]
        await asyncio.wait(ways, timeout=DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()

    async def _exchanges_ended(self) -> None:
        while self.exchanges:
            await asyncio.wait({exchange.ended for exchange in self.exchanges})

    def _abort_exchanges(self) -> None:
        for exchange in list(self.exchanges):
            exchange.abort(self._verdict_of(exchange))

    def _verdict_of(self, exchange: Exchange) -> Unavailable:
        attachment = exchange.attachment
        is_resumable = attachment is not None and self._jobs is not None and self._jobs.is_saved(attachment)
        facts: dict[str, str | bool | None] = {"job": exchange.job_name, "resumable": is_resumable}
        if self._failure is not None:
            return Unavailable(f"the server failed: {self._failure}", code="failed", facts=facts)
        what = "goes on where it was" if is_resumable else "begins anew"
        message = f"the server is shutting down; the same request, sent again, {what}"
        return Unavailable(message, code="shutting_down", facts=facts)

    def _engine_changed(self) -> None:
        engine, admission = self._engine, self._admission
        assert engine is not None and admission is not None
        if engine.state == "failed":
            admission.fail_all(EngineError("engine_failed", engine.reason or "unknown"))
            self.fail(engine.reason or "the engine failed")
        elif engine.state == "ready" and engine.info is not None and self._tokenizer is not None:
            assert self._jobs is not None and self._progress is not None, "opened before the engine is started"
            logger.info("ready", extra={"action": "ready", "engine": msgspec.structs.asdict(engine.info)})
            self.service = Service(
                tokenizer=self._tokenizer,
                preparer=Preparer(
                    tokenizer=self._tokenizer,
                    defaults=self._defaults,
                    max_sequence_tokens=engine.info.max_sequence_tokens,
                    default_max_new_tokens=self.settings.max_new_tokens,
                ),
                readers=Readers(self._reader_config(engine.info), self._reader_limits),
                info=engine.info,
                admission=admission,
                jobs=self._jobs,
                progress=self._progress,
                metrics=self.metrics,
                workers=self.workers,
                writers=self.writers,
                name=self.settings.name,
                identity=f"{self._files_digest} {engine.info.dtype} {self.settings.max_new_tokens}",
            )
            admission.pump()
        self.metrics.ready.set(self.takes_work)

    def _reader_config(self, info: EngineInfo) -> ReaderConfig:
        return ReaderConfig(
            model_dir=self._directory,
            trust_remote_code=self.settings.trust_remote_code,
            max_sequence_tokens=info.max_sequence_tokens,
            default_max_new_tokens=self.settings.max_new_tokens,
            name=self.settings.name,
        )

    def _engine_stepped(self, step: Step) -> None:
        assert self._admission is not None
        self._admission.pump()
        self.metrics.preemptions.inc(step.preemptions)

    def _watch_gauges(self, engine: EngineClient, admission: Admission) -> None:
        """Gauges are read when they are asked for."""
        self.metrics.sequences_running.set_function(lambda: len(engine.sequences))
        self.metrics.sequences_waiting.set_function(lambda: len(admission))
        self.metrics.kv_cache_usage.set_function(lambda: engine.cache_use)
        self.metrics.requests_running.set_function(lambda: len(self.exchanges))


def _engine_config(settings: Settings, directory: str, *, needs_gpu: bool) -> EngineConfig:
    return EngineConfig(
        model_dir=directory,
        device=settings.device,
        needs_gpu=needs_gpu,
        dtype=settings.dtype,
        threads=settings.threads,
        max_model_len=settings.max_model_len,
        kv_cache_tokens=settings.kv_cache_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
        log_level=settings.log_level,
    )


class _HTTPServer(uvicorn.Server):
    """uvicorn without its signal handlers: it goes on answering `/ping` while the edge drains."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, model: str, sock: socket.socket, driver: Decision) -> int:
    """Run until a signal or a failure; returns the exit status."""
    from container.server.app import create_app

    edge = Edge(settings, model, driver)
    share_arenas()
    start_trimmer()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, edge.drain)
    config = uvicorn.Config(
        create_app(edge),
        http=cast(Any, partial(Connection, edge)),  # uvicorn only calls it
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
    )
    server = _HTTPServer(config)
    serving = asyncio.create_task(server.serve(sockets=[sock]), name="the HTTP server")
    loading = asyncio.create_task(edge.load(), name="loading the model")
    needed = [serving, loading]
    if os.getpid() == 1:
        needed.append(asyncio.create_task(reap_zombies(lambda: edge.owned_pids), name="reaper"))
    for task in needed:
        task.add_done_callback(edge.fail_with)
    status = await edge.wait_for_end()
    loading.cancel()
    await edge.stop()
    server.should_exit = True
    await asyncio.wait([serving])
    logger.info("exit", extra={"action": "exit", "status": status})
    return status
