"""The backend of the HTTP server: journal, tokenizer and engine, loaded and put together."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import msgspec

from container.engine.messages import EngineConfig, EngineInfo
from container.engine.sequence import EngineError
from container.engine.supervisor.admission import Admission
from container.engine.supervisor.engine_client import EngineClient
from container.invocations.model_digest import model_digest
from container.invocations.service import Service
from container.jobs.generator import Generator
from container.jobs.registry import JobRegistry
from container.journal.stores.open_store import open_store
from container.journal.stores.store import Store
from container.reader.client import ReaderLimits, Readers
from container.reader.messages import ReaderConfig
from container.server.model_report import report
from container.server.state import ServerState
from container.settings import BadSetting, Settings
from container.startup.gpu_driver import Decision
from container.telemetry.progress import Progress
from container.tokenization.model_defaults import ModelDefaults
from container.tokenization.preparer import Preparer
from container.tokenization.tokenizer import Tokenizer
from container.tokenization.tokenizer_files import is_to_convert

logger = logging.getLogger(__name__)

_THREADS = 2
_SAGEMAKER_VARIABLES = ("SAGEMAKER_SAFE_PORT_RANGE", "SAGEMAKER_BIND_TO_PORT")
"""Variables that only SageMaker's own containers have."""


async def open_journal(settings: Settings) -> Store:
    """Open the journal's store. Raises BadSetting if the URI can never work."""
    try:
        return await asyncio.to_thread(
            partial(open_store, settings.checkpoint_uri, kms_key=settings.checkpoint_kms_key)
        )
    except ValueError as error:
        raise BadSetting(f"LONGHAUL_CHECKPOINT_URI is {settings.checkpoint_uri!r}: {error}") from None


def start_jobs(store: Store, state: ServerState) -> JobRegistry:
    """Return the registry of jobs, at work on the journal in `store`."""
    settings = state.settings
    ends_with_container = store.is_local and any(name in os.environ for name in _SAGEMAKER_VARIABLES)
    if ends_with_container:
        logger.warning(
            "the journal is a directory of this container and ends with it; give an s3:// address as"
            " LONGHAUL_CHECKPOINT_URI to go on after the container's death",
            extra={"action": "journal_is_local"},
        )
    jobs = JobRegistry(
        store,
        state.metrics,
        interval_s=settings.checkpoint_interval_s,
        lifetime_s=settings.checkpoint_days * 86_400,
        max_bytes=settings.checkpoint_max_bytes,
        spool_dir=settings.spool_dir,
        ends_with_container=ends_with_container,
    )
    jobs.start()
    return jobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The model as the server process needs it: without its weights."""

    digest: str
    defaults: ModelDefaults
    tokenizer: Tokenizer
    reader_dir: str
    """Directory from which readers load tokenizer and defaults: the model's, or what was converted from it."""

    @classmethod
    def load(cls, directory: str, *, trust_remote_code: bool, parses_control_tokens: bool, scratch_dir: str) -> Model:
        """Read the model's files, which takes seconds. Raises OSError, ValueError.

        A tokenizer that has to be converted is then kept in a new directory below `scratch_dir`.
        """
        digest = model_digest(directory)
        defaults = ModelDefaults.load(directory)
        tokenizer = Tokenizer.load(
            directory,
            trust_remote_code=trust_remote_code,
            vocab_size=defaults.vocab_size,
            end_token_ids=defaults.eos_token_ids,
            parses_control_tokens=parses_control_tokens,
        )
        defaults = defaults.with_end_token(tokenizer.end_token_id)
        reader_dir = directory
        if is_to_convert(directory):
            reader_dir = tempfile.mkdtemp(prefix="longhaul-tokenizer-", dir=scratch_dir)
            tokenizer.save(directory, reader_dir)
        return cls(digest=digest, defaults=defaults, tokenizer=tokenizer, reader_dir=reader_dir)

    def remove_scratch(self, directory: str) -> None:
        """Remove what `load` has made beside the model's own `directory`."""
        if self.reader_dir != directory:
            shutil.rmtree(self.reader_dir, ignore_errors=True)


class Backend:
    """Owns the jobs, the engine and the threads. Each time that the engine gets ready, `state` gets a new service."""

    def __init__(
        self, state: ServerState, store: Store, directory: str, driver: Decision, on_failure: Callable[[str], None]
    ) -> None:
        """Start them all. `directory` is the model's; `on_failure` is called once the engine can't go on."""
        settings, metrics = state.settings, state.metrics
        self._state = state
        self._directory = directory
        self._on_failure = on_failure
        self._model: Model | None = None
        self._has_reported = False
        self._workers = ThreadPoolExecutor(_THREADS, thread_name_prefix="text")
        self._writers = ThreadPoolExecutor(_THREADS, thread_name_prefix="answer")
        self._reader_limits = ReaderLimits()
        self._jobs = start_jobs(store, state)
        self._progress = Progress.of(settings, metrics, self._jobs.write_beside)
        if self._progress is not None:
            self._progress.start()
        shared = {name: getattr(settings, name) for name in EngineConfig.__struct_fields__ if hasattr(settings, name)}
        self._engine = EngineClient(
            EngineConfig(model_dir=directory, needs_gpu=driver.needs_gpu, **shared),
            stall_timeout_s=settings.stall_timeout_s,
            library_path=driver.library_path,
            on_change=self._update,
            on_restart=metrics.engine_restarts.inc,
            on_resubmit=metrics.resubmitted.inc,
            on_preemptions=metrics.preemptions.inc,
        )
        self._admission = Admission(self._engine)
        self._engine.on_step = self._admission.pump
        metrics.sequences_running.set_function(lambda: len(self._engine.sequences))
        metrics.sequences_waiting.set_function(lambda: len(self._admission))
        metrics.kv_cache_usage.set_function(lambda: self._engine.cache_use)
        self._engine.start()

    @property
    def child_pids(self) -> set[int]:
        """Children whose exit status is waited for."""
        engine = self._engine.pid
        return self._reader_limits.pids | ({engine} if engine is not None else set())

    async def load_model(self) -> None:
        """Load the tokenizer while the engine loads the weights. Raises OSError, ValueError."""
        settings = self._state.settings
        load = partial(
            Model.load,
            self._directory,
            trust_remote_code=settings.trust_remote_code,
            parses_control_tokens=settings.parse_control_tokens,
            scratch_dir=settings.spool_dir,
        )
        model = await asyncio.to_thread(load)
        for warning in model.defaults.warnings:
            logger.warning(warning)
        self._model = model
        self._update()

    async def save_jobs(self, timeout_s: float) -> None:
        """End all generation and save what there is, so that it can go on later."""
        self._jobs.freeze()
        # Not cancelled at its end: a thread may be writing.
        await asyncio.wait([asyncio.create_task(self._jobs.save_all())], timeout=timeout_s)

    async def stop(self, *, save_timeout_s: float) -> None:
        await asyncio.gather(self.save_jobs(save_timeout_s), self._engine.stop())
        if self._progress is not None:
            await self._progress.stop()
        self._jobs.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._writers.shutdown(wait=False, cancel_futures=True)
        if self._model is not None:
            self._model.remove_scratch(self._directory)

    def _update(self) -> None:
        """Tell the state how the engine is."""
        engine = self._engine
        if engine.state == "failed":
            reason = engine.reason or "the engine failed"
            self._admission.fail_all(EngineError("engine_failed", reason))
            self._on_failure(reason)
        elif engine.state == "ready" and engine.info is not None and self._model is not None:
            logger.info("ready", extra={"action": "ready", "engine": msgspec.structs.asdict(engine.info)})
            self._report(self._model, engine.info)
            self._state.use(self._service(self._model, engine.info))
            self._admission.pump()
        else:
            self._state.recover()

    def _report(self, model: Model, info: EngineInfo) -> None:
        """Log how the model stops, its length and its template: once, as they stay the same."""
        if not self._has_reported:
            self._has_reported = True
            line, fields = report(self._directory, model.defaults, model.tokenizer, info)
            logger.info(line, extra=fields)

    def _service(self, model: Model, info: EngineInfo) -> Service:
        settings = self._state.settings
        reader_config = ReaderConfig(
            model_dir=model.reader_dir,
            trust_remote_code=settings.trust_remote_code,
            parses_control_tokens=settings.parse_control_tokens,
            max_sequence_tokens=info.max_sequence_tokens,
            default_max_new_tokens=settings.max_new_tokens,
            name=settings.name,
            deadline_reason=settings.deadline_finish_reason,
        )
        identity = (model.digest, info.dtype, settings.max_new_tokens, *["parsed"] * settings.parse_control_tokens)
        return Service(
            preparer=Preparer(
                tokenizer=model.tokenizer,
                defaults=model.defaults,
                max_sequence_tokens=info.max_sequence_tokens,
                default_max_new_tokens=settings.max_new_tokens,
            ),
            readers=Readers(reader_config, self._reader_limits),
            info=info,
            generator=Generator(admission=self._admission, tokenizer=model.tokenizer, metrics=self._state.metrics),
            jobs=self._jobs,
            progress=self._progress,
            metrics=self._state.metrics,
            workers=self._workers,
            writers=self._writers,
            name=settings.name,
            deadline_reason=settings.deadline_finish_reason,
            identity=" ".join(map(str, identity)),
        )
