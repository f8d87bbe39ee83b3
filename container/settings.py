"""Settings: environment variables, which are all that SageMaker gives a container. Read once, checked at the start."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

SAGEMAKER_MODEL_DIR = "/opt/ml/model"
PREFIX = "LONGHAUL_"


class BadSetting(Exception):
    """A variable's value can't be used, or its name is unknown. The message is for the log."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a variable's text becomes a value; `expected` completes "expected …" in errors."""

    expected: str
    parse: Callable[[str], Any] = str
    """Makes the value. Raises ValueError, KeyError."""
    is_valid: Callable[[Any], object] = lambda value: True


def _number(minimum: int, maximum: int | None = None) -> Kind:
    expected = f"a whole number from {minimum}" + (f" to {maximum}" if maximum is not None else "")
    return Kind(expected, int, lambda value: minimum <= value and (maximum is None or value <= maximum))


def _duration(unit: str, minimum: float, maximum: float = sys.float_info.max) -> Kind:
    range_ = f"at least {minimum:g}" if maximum == sys.float_info.max else f"from {minimum:g} to {maximum:g}"
    return Kind(f"a number of {unit}, {range_}", float, lambda value: minimum <= value <= maximum)


def _one_of(*choices: str) -> Kind:
    return Kind("one of " + ", ".join(choices), is_valid=choices.__contains__)


_TEXT = Kind("some text")
_SWITCHES = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
_SWITCH = Kind("1, true, on, 0, false or off", lambda text: _SWITCHES[text.lower()])
_STORE = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?|/(?s:.*)"


def _setting(
    variable: str, kind: Kind, meaning: str, *, default: Any = None, shown: str = "", secret: bool = False
) -> Any:
    """Return a field that is read from `variable`; `shown` is the README's text for a default that is chosen later."""
    metadata = {"variable": variable, "kind": kind, "meaning": meaning, "shown": shown}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked. Read `model` through `container.startup.model_source`: it may be a hub id."""

    model: str | None = _setting(
        "LONGHAUL_MODEL",
        _TEXT,
        "model directory or hub id",
        shown="`/opt/ml/model` if it holds a model, else `HF_MODEL_ID`",
    )
    hf_model_id: str | None = _setting("HF_MODEL_ID", _TEXT, "hub id, where no directory is given")
    hf_model_revision: str | None = _setting(
        "HF_MODEL_REVISION", _TEXT, "branch, tag or commit of the hub id", shown="main"
    )
    hf_token: str | None = _setting("HF_TOKEN", _TEXT, "for private hub models", secret=True)
    host: str = _setting("LONGHAUL_HOST", _TEXT, "address to listen on", default="127.0.0.1")
    port: int = _setting(
        "LONGHAUL_PORT", _number(1, 65535), "port to listen on", default=8080, shown="`SAGEMAKER_BIND_TO_PORT` or 8080"
    )
    device: str | None = _setting(
        "LONGHAUL_DEVICE",
        Kind("cpu, cuda or cuda:N", is_valid=re.compile(r"cpu|cuda(:\d+)?").fullmatch),
        "`cpu`, `cuda` or `cuda:N`; a GPU that can't be used ends the start",
        shown="the first GPU; the CPU where there is none",
    )
    dtype: str | None = _setting(
        "LONGHAUL_DTYPE",
        _one_of("float32", "float16", "bfloat16"),
        "type of weights and cache",
        shown="float32 on a CPU, the checkpoint's half precision on a GPU",
    )
    threads: int | None = _setting(
        "LONGHAUL_THREADS", _number(1, 1024), "CPU threads of the engine", shown="the cores it may use"
    )
    max_model_len: int | None = _setting(
        "LONGHAUL_MAX_MODEL_LEN", _number(2), "tokens a sequence may hold, prompt and output", shown="the model's"
    )
    max_new_tokens: int = _setting(
        "LONGHAUL_MAX_NEW_TOKENS", _number(1), "most new tokens where a request says nothing", default=4096
    )
    kv_cache_tokens: int | None = _setting(
        "LONGHAUL_KV_CACHE_TOKENS",
        _number(64),
        "tokens of KV cache for all running sequences",
        shown="from free memory",
    )
    max_batch_tokens: int | None = _setting(
        "LONGHAUL_MAX_BATCH_TOKENS",
        _number(16),
        "tokens per step; longer prompts are prefilled in pieces",
        shown="256 on a CPU, 2048 on a GPU",
    )
    invocation_timeout_s: float = _setting(
        "LONGHAUL_INVOCATION_TIMEOUT_S",
        _duration("seconds", 1, 86_400),
        "when the caller of a request gives up, where it has no `timeout=`: what the endpoint's callers are given",
        default=900.0,
    )
    on_deadline: Literal["partial", "error"] = _setting(
        "LONGHAUL_ON_DEADLINE",
        _one_of("partial", "error"),
        "what is unfinished then: `partial` texts, marked, or an `error`",
        default="partial",
    )
    deadline_finish_reason: Literal["deadline", "length"] = _setting(
        "LONGHAUL_DEADLINE_FINISH_REASON",
        _one_of("deadline", "length"),
        "`finish_reason` of such a text; `length` is for clients that know only OpenAI's own, and has `deadline: true` "
        "beside it",
        default="deadline",
    )
    stall_timeout_s: float = _setting(
        "LONGHAUL_STALL_TIMEOUT_S",
        _duration("seconds", 1),
        "an engine with work but no step for so long is killed and restarted",
        default=120.0,
    )
    client_timeout_s: float = _setting(
        "LONGHAUL_CLIENT_TIMEOUT_S",
        _duration("seconds", 1),
        "longest that a client may take for its head, for the next byte of its body, or to take more of its answer",
        default=60.0,
    )
    max_body_bytes: int = _setting(
        "LONGHAUL_MAX_BODY_BYTES", _number(1024), "largest JSON-lines body", default=1 << 30, shown="1 GiB"
    )
    max_json_bytes: int = _setting(
        "LONGHAUL_MAX_JSON_BYTES",
        _number(1024),
        "largest JSON document, text, or line of JSON lines",
        default=64 << 20,
        shown="64 MiB",
    )
    spool_dir: str = _setting(
        "LONGHAUL_SPOOL_DIR",
        Kind("a directory that exists", is_valid=os.path.isdir),
        "where JSON-lines bodies and answers lie while they are worked on",
        shown="the temporary directory",
    )
    checkpoint_uri: str = _setting(
        "LONGHAUL_CHECKPOINT_URI",
        Kind("a directory's absolute path or s3://bucket/prefix", is_valid=re.compile(_STORE).fullmatch),
        "where the journal lies, from which unfinished work goes on: a directory or `s3://bucket/prefix`",
        shown="a directory under the temporary directory",
    )
    checkpoint_interval_s: float = _setting(
        "LONGHAUL_CHECKPOINT_INTERVAL_S",
        _duration("seconds", 0.1, 3600),
        "how often what was generated is journalled: what the container's death costs at most",
        default=10.0,
    )
    checkpoint_days: float = _setting(
        "LONGHAUL_CHECKPOINT_DAYS",
        _duration("days", 0.01, 365),
        "so long after its beginning a job's journal is forgotten",
        default=7.0,
    )
    checkpoint_max_bytes: int = _setting(
        "LONGHAUL_CHECKPOINT_MAX_BYTES",
        _number(1 << 20),
        "largest journal of one job; and of a directory with all its jobs, whose oldest then go",
        default=8 << 30,
        shown="8 GiB",
    )
    checkpoint_kms_key: str | None = _setting(
        "LONGHAUL_CHECKPOINT_KMS_KEY", _TEXT, "KMS key for a journal on S3", shown="the bucket's own encryption"
    )
    log_level: str = _setting(
        "LONGHAUL_LOG_LEVEL",
        _one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        "least severe log lines written",
        default="INFO",
    )
    progress: Literal["log", "s3"] | None = _setting(
        "LONGHAUL_PROGRESS",
        _one_of("log", "s3"),
        "how far each request is, every 5 s, and the server's CloudWatch metrics every 60 s: as lines of the `log`, "
        "with `s3` also as an object beside the journal",
        shown="off",
    )
    served_name: str | None = _setting(
        "LONGHAUL_SERVED_NAME",
        _TEXT,
        "the model's name in answers and in `/v1/models`",
        shown="last part of the model's path or id",
    )
    parse_control_tokens: bool = _setting(
        "LONGHAUL_PARSE_CONTROL_TOKENS",
        _SWITCH,
        "control tokens in a chat's messages are tokens, not text: whoever writes a message can then write turns",
        default=False,
        shown="off",
    )
    trust_remote_code: bool = _setting(
        "LONGHAUL_TRUST_REMOTE_CODE", _SWITCH, "run Python code that comes with a model", default=False, shown="off"
    )
    unverified_models: bool = _setting(
        "LONGHAUL_UNVERIFIED_MODELS",
        _SWITCH,
        "run model types that are not in the table of models, after a check of their tokens at each start",
        default=False,
        shown="off",
    )
    allow_pickle: bool = _setting(
        "LONGHAUL_ALLOW_PICKLE", _SWITCH, "load pickle weights, which can run code", default=False, shown="off"
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Read and check the variables. Raises BadSetting with the variable's name, its value and what was expected.

        An empty variable counts as unset. Other `LONGHAUL_` names are errors, so that a typo does not pass unnoticed.
        """
        given = {
            name: value.strip() for name, value in environ.items() if value.strip() and not is_service_link(name, value)
        }
        known = {f.metadata["variable"]: f for f in fields(cls)}
        for name in sorted(given):
            if name.startswith(PREFIX) and name not in known:
                raise BadSetting(f"{name} is not a setting; the settings are {', '.join(sorted(known))}")
        values = {f.name: _read(f.metadata["kind"], name, given[name]) for name, f in known.items() if name in given}
        if "port" not in values and "SAGEMAKER_BIND_TO_PORT" in given:
            values["port"] = _read(_number(1, 65535), "SAGEMAKER_BIND_TO_PORT", given["SAGEMAKER_BIND_TO_PORT"])
        values.setdefault("spool_dir", tempfile.gettempdir())
        values.setdefault("checkpoint_uri", f"{tempfile.gettempdir()}/longhaul-checkpoints-{os.getuid()}")
        return cls(**values)

    @property
    def name(self) -> str:
        """Name of the model for callers."""
        return self.served_name or Path(self.model or self.hf_model_id or "model").name


def _read(kind: Kind, variable: str, text: str) -> Any:
    with contextlib.suppress(ValueError, KeyError):
        if kind.is_valid(value := kind.parse(text)):
            return value
    raise BadSetting(f"{variable} is {text!r}; expected {kind.expected}")


def is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes made the variable for a service: those of a service called `longhaul` look like ours
    (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables)."""
    pattern = r"LONGHAUL_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR))"
    if re.match(r"(tcp|udp|sctp)://", value):
        pattern = r"LONGHAUL_(\w+_)?PORT(_\d+_(TCP|UDP|SCTP))?"
    return bool(re.fullmatch(pattern, name))


def settings_table() -> str:
    """Return the README's table, so that a test can hold it to the code."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for f in fields(Settings):
        shown = f.metadata["shown"] or (
            "" if f.default in (None, MISSING) else f"{f.default:g}" if isinstance(f.default, float) else str(f.default)
        )
        rows.append(f"| `{f.metadata['variable']}` | {shown} | {f.metadata['meaning']} |")
    return "\n".join(rows)
